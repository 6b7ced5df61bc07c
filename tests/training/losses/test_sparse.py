"""Divergences over known ids and a bucket, and from samples: against autograd in float64, on whatever logits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_reference import naive_loss

from apt.console.errors import UsageError
from apt.training.losses.divergences import DIVERGENCES
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms
from apt.training.teachers.contract import DenseTargets, SparseTargets
from apt.training.teachers.sparse import sample_of, top_k_of


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    vocab = draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    tokens, spread = draw(st.integers(1, 9)), draw(st.floats(0.1, 4.0))
    return {
        "k": draw(st.integers(1, vocab)),
        "shared": draw(st.sampled_from([None, vocab])),
        "padding": draw(st.integers(0, 5)),
        "ours": torch.randn(tokens, vocab + 5, generator=generator) * spread,
        "theirs": torch.randn(tokens, vocab, generator=generator) * spread,
        "targets": torch.randint(vocab, (tokens,), generator=generator),
        "alpha": draw(st.sampled_from([1.0, 0.5])),
    }


def by_identity(logits: torch.Tensor) -> tuple[torch.Tensor, Head]:
    """Hidden states and a head whose logits are these."""
    return logits.clone().requires_grad_(), Head(torch.eye(logits.shape[1]))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([*sorted(DIVERGENCES), "sampled"]))
def test_equal_to_float64(problem: dict[str, Any], divergence: str) -> None:
    shared = problem["shared"]
    logits = problem["ours"][:, : problem["theirs"].shape[1] + (problem["padding"] if shared else 0)]
    dense = DenseTargets(*by_identity(problem["theirs"]))
    if divergence == "sampled":
        known = sample_of(dense, problem["k"], rng=torch.Generator().manual_seed(1))
    else:
        known = top_k_of(dense, problem["k"])
    name = "forward_kl" if divergence == "sampled" else divergence
    terms = Terms(alpha=problem["alpha"], divergence=name, shared_vocab=shared)
    hidden, head = by_identity(logits)
    loss, _ = linear_loss(hidden, head, problem["targets"], terms, known)
    loss.backward()
    wanted_logits = logits.double().requires_grad_()
    wanted = naive_loss(wanted_logits, None, problem["targets"], terms, known=known)
    wanted.backward()
    assert hidden.grad is not None and wanted_logits.grad is not None
    scale = float(wanted_logits.grad.norm())
    # The bucket's mass is one less the rest in fp32: of what is nearly nothing few digits are left.
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5, abs=2e-6)
    assert float((hidden.grad - wanted_logits.grad).norm()) < 1e-5 * scale + 2e-6


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_the_estimate_from_a_draw_is_right_in_expectation(alpha: float) -> None:
    """Each id's estimate, times its probability: exactly the loss and gradient of the whole distribution."""
    generator = torch.Generator().manual_seed(2)
    theirs, mine = (torch.randn(1, 7, generator=generator) * 2 for _ in range(2))
    terms, targets = Terms(alpha=alpha), torch.tensor([3])

    def result(known: Any) -> tuple[float, torch.Tensor]:
        hidden, head = by_identity(mine)
        loss, _ = linear_loss(hidden, head, targets, terms, known)
        loss.backward()
        assert hidden.grad is not None
        return float(loss.detach()), hidden.grad.double()

    log_p = theirs.log_softmax(-1)
    loss, gradient = 0.0, torch.zeros(1, 7, dtype=torch.float64)
    for i in range(7):
        known = SparseTargets(torch.tensor([[i]]), torch.ones(1, 1), log_p[:, i : i + 1], "sampled")
        one, slope = result(known)
        loss += float(log_p[0, i].exp()) * one
        gradient += float(log_p[0, i].exp()) * slope
    whole, whole_gradient = result(DenseTargets(*by_identity(theirs)))
    assert loss == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(gradient, whole_gradient, atol=1e-6)


def test_the_likeliest_ids_see_no_more_than_the_whole_distribution() -> None:
    generator = torch.Generator().manual_seed(4)
    theirs, mine = (torch.randn(20, 50, generator=generator) * 2 for _ in range(2))
    dense, targets = DenseTargets(*by_identity(theirs)), torch.zeros(20, dtype=torch.int64)
    for name in sorted(DIVERGENCES):
        found = [
            float(linear_loss(*by_identity(mine), targets, Terms(alpha=1.0, divergence=name), known)[0].detach())
            for known in (top_k_of(dense, 2), top_k_of(dense, 10), top_k_of(dense, 40), dense)
        ]
        assert found == sorted(found) and found[0] < found[-1]


def test_sums_of_sparse_targets() -> None:
    generator = torch.Generator().manual_seed(6)
    theirs, mine = (torch.randn(20, 50, generator=generator) * 2 for _ in range(2))
    known = top_k_of(DenseTargets(*by_identity(theirs)), 8)
    terms, weights = Terms(alpha=1.0, divergence="jsd"), torch.linspace(0.0, 2.0, 20)
    targets = torch.zeros(20, dtype=torch.int64)
    _, sums = linear_loss(*by_identity(mine), targets, terms, known, weights=weights)
    plain = Terms(alpha=1.0)
    wanted = naive_loss(mine.double(), None, targets, plain, known=known, weights=weights)
    assert float(sums.forward_kl) == pytest.approx(float(wanted), rel=1e-5)
    assert float(sums.teacher_mass) == pytest.approx(float((known.weights.sum(-1) * weights).sum()), rel=1e-6)
    same = (theirs.argmax(-1) == mine.argmax(-1)).double()
    assert float(sums.agreeing) == pytest.approx(float((same * weights).sum()))


@pytest.mark.parametrize(
    ("kind", "terms", "reason"),
    [
        ("top_k", Terms(alpha=1.0, temperature=2.0), "temperature 1"),
        ("sampled", Terms(alpha=1.0, temperature=0.5), "temperature 1"),
        ("sampled", Terms(alpha=1.0, divergence="jsd"), "not jsd"),
    ],
)
def test_what_cannot_be_known_is_refused(kind: Any, terms: Terms, reason: str) -> None:
    known = SparseTargets(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), torch.zeros(1, 1), kind)
    with pytest.raises(UsageError, match=reason):
        linear_loss(*by_identity(torch.zeros(1, 4)), torch.tensor([0]), terms, known)
