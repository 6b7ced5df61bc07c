"""The likeliest ids and samples of a whole distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.console.errors import UsageError
from apt.training.losses import linear
from apt.training.losses.head import Head
from apt.training.teachers import sparse
from apt.training.teachers.contract import DenseTargets
from apt.training.teachers.sparse import sample_of, top_k_of


def dense(tokens: int, vocab: int, seed: int = 0, spread: float = 2.0) -> DenseTargets:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, 12, generator=generator) * spread / 12**0.5
    return DenseTargets(torch.randn(tokens, 12, generator=generator), Head(weight))


def log_probabilities(targets: DenseTargets, shared: int | None = None) -> torch.Tensor:
    return (targets.hidden.double() @ targets.head.weight.double().T)[:, :shared].log_softmax(-1)


@pytest.mark.parametrize("shared", [None, 30])
def test_the_likeliest_ids_in_order(shared: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(linear, "MIN_CHUNK_TOKENS", 7)
    targets = dense(20, 41)
    found, wanted = top_k_of(targets, 9, shared_vocab=shared), log_probabilities(targets, shared).topk(9)
    assert found.kind == "top_k" and torch.equal(found.ids, wanted.indices)
    assert torch.allclose(found.log_probs.double(), wanted.values, atol=1e-6)
    assert torch.allclose(found.weights.double(), wanted.values.exp(), rtol=2e-6)
    assert found.weights.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000), st.floats(0.0, 12.0))
def test_each_draw_weighs_the_same(vocab: int, k: int, seed: int, spread: float) -> None:
    targets = dense(5, vocab, seed, spread)
    found = sample_of(targets, k, rng=torch.Generator().manual_seed(seed))
    assert found.kind == "sampled" and found.ids.shape == (5, k)
    assert int(found.ids.min()) >= 0 and int(found.ids.max()) < vocab
    assert torch.equal(found.weights, torch.full((5, k), 1.0 / k))
    wanted = log_probabilities(targets).gather(1, found.ids)
    assert torch.allclose(found.log_probs.double(), wanted, atol=1e-4)


def test_more_ids_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="there are 9 ids"):
        top_k_of(dense(2, 12), 10, shared_vocab=9)


def test_draws_come_as_often_as_they_are_likely() -> None:
    targets = dense(1, 12)
    many = DenseTargets(targets.hidden.expand(4000, -1).contiguous(), targets.head)
    found = sample_of(many, 8, rng=torch.Generator().manual_seed(9), shared_vocab=11)
    p = log_probabilities(targets, 11).exp()[0]
    share = torch.zeros(11, dtype=torch.float64)
    share.index_add_(0, found.ids.flatten(), found.weights.double().flatten())
    share /= 4000
    deviation = (p * (1 - p) / (4000 * 8)).sqrt()
    assert float(((share - p) / deviation).abs().max()) < 4.0


def test_a_sample_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = dense(33, 40)
    whole = sample_of(targets, 6, rng=torch.Generator().manual_seed(1))
    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(linear, "MIN_CHUNK_TOKENS", 5)
    parts = sample_of(targets, 6, rng=torch.Generator().manual_seed(1))
    assert torch.equal(whole.ids, parts.ids) and torch.equal(whole.weights, parts.weights)


def test_no_tokens() -> None:
    for found in (top_k_of(dense(0, 5), 2), sample_of(dense(0, 5), 2, rng=torch.Generator())):
        assert found.ids.shape == found.weights.shape == found.log_probs.shape == (0, 2)
        assert found.ids.dtype == torch.int64


def test_unlikely_ids_are_drawn_and_impossible_ones_are_not() -> None:
    log_p = torch.tensor([[-torch.inf, 0.0] + [2e-8] * 10])
    log_p[0, 2:] = log_p[0, 2:].log()
    # The sums end at 1 + 2e-7: in fp32 they would all be 1.
    points = torch.tensor([[0.0, 0.5, 1.0 - 5e-8]], dtype=torch.float64)
    assert sparse.draw(log_p, points).tolist() == [[1, 1, 9]]
