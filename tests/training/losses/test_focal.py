"""The focal loss: definition, limits, contract."""

import pytest
import torch
from losses_reference import naive_loss
from training_helpers import small_model, small_rows

from apt.training.components import build_loss
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.losses.focal import FocalOptions
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equal_to_float64(gamma: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(150, 16, generator=generator).requires_grad_()
    weight = torch.randn(70, 16, generator=generator).requires_grad_()
    targets = torch.randint(70, (150,), generator=generator)
    weights = torch.rand(150, generator=generator) if weighted else None
    terms = Terms(focal_gamma=gamma, z_loss=1e-3)
    loss, _ = linear_loss(hidden, Head(weight), targets, terms, weights=weights)
    loss.backward()
    h, w = (t.detach().double().requires_grad_() for t in (hidden, weight))
    wanted = naive_loss(h @ w.T, None, targets, terms, weights=weights)
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    for ours, exact in ((hidden.grad, h.grad), (weight.grad, w.grad)):
        assert ours is not None and exact is not None
        assert float((ours - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_labels_that_are_certain_stay_finite(gamma: float) -> None:
    hidden = torch.tensor([[60.0, 0.0], [0.0, 60.0]], requires_grad=True)
    loss, _ = linear_loss(hidden, Head(torch.eye(2)), torch.tensor([0, 0]), Terms(focal_gamma=gamma))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(60.0)
    assert hidden.grad is not None and hidden.grad.isfinite().all() and float(hidden.grad[0].abs().max()) < 1e-6


def test_gamma_zero_is_cross_entropy_and_more_gamma_counts_less() -> None:
    model, rows = small_model(), small_rows(4)
    batch = {"input_ids": rows.ids, "labels": rows.labels}
    plain = build_loss(CrossEntropyOptions())(model, batch, rng=torch.Generator(), step=0)
    found = [
        build_loss(FocalOptions(gamma=gamma))(model, batch, rng=torch.Generator(), step=0) for gamma in (0.0, 1.0, 4.0)
    ]
    assert float(found[0].loss_sum.detach()) == float(plain.loss_sum.detach())
    assert all(float(f.metrics["loss/ce"].sum) == float(plain.metrics["loss/ce"].sum) for f in found)
    sums = [float(f.metrics["loss/focal"].sum) for f in found]
    assert sums == sorted(sums, reverse=True) and sums[2] < sums[0]
    assert float(found[1].weight) == float(plain.weight)


def test_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without smoothing"):
        Terms(focal_gamma=2.0, label_smoothing=0.1)
