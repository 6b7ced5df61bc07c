"""Records of a token: ids come back exactly, log-probabilities within the stated error, in the stated bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.training.teachers.packing import LEVEL_BITS, Format


def distribution(seed: int, tokens: int, vocabulary: int, spread: float) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal((tokens, vocabulary)) * spread
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.integers(1, 3000),
    share=st.floats(0.0, 1.0),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    encoding=st.sampled_from(["packed", "plain"]),
)
def test_records_come_back(seed: int, vocabulary: int, share: float, spread: float, encoding: str) -> None:
    k = max(1, min(vocabulary, round(share * vocabulary)))
    log_probs = distribution(seed, 3, vocabulary, spread)
    ids = np.argsort(-log_probs, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(log_probs, ids, 1).astype(np.float32)
    layout = Format(encoding, k, vocabulary)  # type: ignore[arg-type]
    records = layout.pack(ids, values)
    assert records.shape == (3, layout.bytes_per_token) and records.dtype == np.uint8
    read_ids, read = layout.unpack(records)
    order = np.argsort(ids, axis=1, kind="stable") if encoding == "packed" else np.tile(np.arange(k), (3, 1))
    assert np.array_equal(read_ids, np.take_along_axis(ids, order, 1))
    exact = np.take_along_axis(values, order, 1)
    p, q = np.exp(exact.astype(np.float64)), np.exp(read.astype(np.float64))
    assert np.abs(p.sum(1) - q.sum(1)).max() < 5e-3  # float16 keeps the logarithm of the mass
    # A level's half width, in the third root of the probability, and what float16 adds.
    roots, read_roots = np.cbrt(p / p.max(1, keepdims=True)), np.cbrt(q / q.max(1, keepdims=True))
    assert np.abs(roots - read_roots).max() < (0.75 / (2**LEVEL_BITS - 1) if encoding == "packed" else 1e-2)


@given(seed=st.integers(0, 2**32 - 1), vocabulary=st.integers(1, 200), k=st.integers(1, 40))
def test_draws_that_repeat_come_back(seed: int, vocabulary: int, k: int) -> None:
    ids = np.random.default_rng(seed).integers(0, vocabulary, (2, k))
    layout = Format("packed", k, vocabulary)
    read, _ = layout.unpack(layout.pack(ids, np.full((2, k), -1.0, np.float32)))
    assert np.array_equal(read, np.sort(ids, axis=1))


def test_128_ids_of_151936_take_at_most_300_bytes() -> None:
    assert Format("packed", 128, 151_936).bytes_per_token == 297
    assert Format("plain", 64, 151_936).bytes_per_token == 384


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_the_encoding_costs_less_than_a_thousandth_of_a_nat(spread: float) -> None:
    log_probs = distribution(0, 64, 20_000, spread)
    ids = np.argsort(-log_probs, axis=1)[:, :128]
    exact = np.take_along_axis(log_probs, np.sort(ids, axis=1), 1)
    layout = Format("packed", 128, 20_000)
    _, read = layout.unpack(layout.pack(ids, np.take_along_axis(log_probs, ids, 1).astype(np.float32)))
    p, q = np.exp(exact), np.exp(read.astype(np.float64))
    rest_p, rest_q = 1 - p.sum(1), 1 - q.sum(1)
    kl = (p * (exact - read)).sum(1) + rest_p * np.log(rest_p / rest_q)
    assert 0 < kl.mean() < 1e-3
