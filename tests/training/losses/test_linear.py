"""Chunked losses against a naive float64 reference: values, gradients, masks, vocabularies."""

import itertools
from typing import Any

import pytest
import torch
from losses_reference import naive_loss
from torch import Tensor
from torch.nn.functional import log_softmax

from apt.training.losses import linear
from apt.training.losses.divergences import DIVERGENCES
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms
from apt.training.teachers.contract import DenseTargets

NAMES = sorted(DIVERGENCES)


def reference(parts: dict[str, Any], terms: Terms) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients in float64 by autograd over all logits at once."""
    hidden, weight = (parts[k].detach().double().requires_grad_() for k in ("hidden", "weight"))
    bias = parts["bias"].detach().double().requires_grad_() if parts["bias"] is not None else None

    def logits_of(h: Tensor, w: Tensor, b: Tensor | None, cap: float | None) -> Tensor:
        raw = h @ w.T + (b if b is not None else 0.0)
        return raw if cap is None else torch.tanh(raw / cap) * cap

    ours = logits_of(hidden, weight, bias, parts["softcap"])
    theirs = None
    if terms.alpha > 0:
        theirs = logits_of(parts["teacher_hidden"].double(), parts["teacher_weight"].double(), None, None)
    loss = naive_loss(ours, theirs, parts["targets"], terms, weights=parts.get("weights"))
    loss.backward()
    leaves = [hidden, weight] + ([bias] if bias is not None else [])
    return loss.detach(), [leaf.grad for leaf in leaves]


def make_parts(
    *,
    tokens: int = 300,
    vocab: int = 157,
    teacher_vocab: int | None = None,
    bias: bool = False,
    softcap: float | None = None,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "hidden": normal(tokens, 24).requires_grad_(),
        "weight": (normal(vocab, 24) * 0.5).requires_grad_(),
        "bias": normal(vocab).requires_grad_() if bias else None,
        "softcap": softcap,
        "targets": torch.randint(vocab, (tokens,), generator=generator),
        "teacher_hidden": normal(tokens, 40),
        "teacher_weight": normal(teacher_vocab or vocab, 40) * 0.4,
    }  # fmt: skip


def ours(parts: dict[str, Any], terms: Terms) -> tuple[Tensor, list[Tensor]]:
    head = Head(parts["weight"], parts["bias"], parts["softcap"])
    teacher = DenseTargets(parts["teacher_hidden"], Head(parts["teacher_weight"])) if terms.alpha else None
    loss, _ = linear_loss(parts["hidden"], head, parts["targets"], terms, teacher, weights=parts.get("weights"))
    loss.backward()
    leaves = [parts["hidden"], parts["weight"]] + ([parts["bias"]] if parts["bias"] is not None else [])
    return loss.detach(), [leaf.grad for leaf in leaves]


def assert_equal_to_reference(parts: dict[str, Any], terms: Terms) -> None:
    expected, expected_gradients = reference(parts, terms)
    loss, gradients = ours(parts, terms)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks, the last one short."""
    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(linear, "BLOCK_ELEMENTS", 157 * 24)


@pytest.mark.parametrize(("name", "alpha", "temperature"), list(itertools.product(NAMES, [1.0, 0.6], [1.0, 2.5])))
def test_divergences_equal_float64(name: str, alpha: float, temperature: float) -> None:
    assert_equal_to_reference(make_parts(), Terms(alpha=alpha, temperature=temperature, divergence=name))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_cross_entropy_equals_float64(smoothing: float, z_loss: float) -> None:
    assert_equal_to_reference(make_parts(), Terms(label_smoothing=smoothing, z_loss=z_loss))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_weights_of_tokens_may_be_zero_or_negative(alpha: float) -> None:
    parts = make_parts()
    parts["weights"] = torch.linspace(-1.0, 2.0, 300)
    parts["weights"][7:40] = 0.0
    assert_equal_to_reference(parts, Terms(alpha=alpha, divergence="jsd", label_smoothing=0.1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["bias", "softcap", "both"])
def test_bias_and_softcap_equal_float64(name: str, form: str) -> None:
    parts = make_parts(bias=form != "softcap", softcap=None if form == "bias" else 5.0)
    assert_equal_to_reference(parts, Terms(alpha=0.5, divergence=name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("teacher_vocab", [150, 170])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_padded_vocabularies_are_compared_on_shared_ids(name: str, teacher_vocab: int, temperature: float) -> None:
    terms = Terms(alpha=0.7, divergence=name, temperature=temperature, shared_vocab=min(157, teacher_vocab))
    assert_equal_to_reference(make_parts(teacher_vocab=teacher_vocab), terms)


@pytest.mark.parametrize("name", NAMES)
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(name: str) -> None:
    parts = make_parts()
    parts["teacher_hidden"], parts["teacher_weight"] = parts["hidden"].detach(), parts["weight"].detach()
    loss, gradients = ours(parts, Terms(alpha=1.0, divergence=name))
    assert abs(float(loss)) / len(parts["targets"]) < 1e-6
    assert all(float(g.abs().max()) < 1e-5 for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite(name: str) -> None:
    parts = make_parts()
    with torch.no_grad():
        parts["weight"] *= 200
        parts["teacher_weight"] *= -200
    loss, gradients = ours(parts, Terms(alpha=0.5, divergence=name))
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)


def test_no_tokens_give_zero_and_a_graph() -> None:
    parts = make_parts(tokens=0)
    loss, gradients = ours(parts, Terms(alpha=0.5))
    assert float(loss) == 0.0
    assert float(gradients[1].abs().sum()) == 0.0


def test_sums_are_those_of_the_definitions() -> None:
    parts = make_parts()
    teacher = DenseTargets(parts["teacher_hidden"], Head(parts["teacher_weight"]))
    head = Head(parts["weight"])
    with torch.no_grad():
        _, sums = linear_loss(
            parts["hidden"], head, parts["targets"], Terms(alpha=1.0, divergence="jsd", temperature=2.0), teacher
        )
    log_q = log_softmax((parts["hidden"].double() @ parts["weight"].double().T).detach(), -1)
    log_p = log_softmax(parts["teacher_hidden"].double() @ parts["teacher_weight"].double().T, -1)
    assert float(sums.cross_entropy) == pytest.approx(-float(log_q.gather(1, parts["targets"][:, None]).sum()))
    assert float(sums.forward_kl) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-5)
    assert int(sums.agreeing) == int((log_p.argmax(-1) == log_q.argmax(-1)).sum())


def test_gradients_are_given_once() -> None:
    parts = make_parts()
    loss, _ = linear_loss(parts["hidden"], Head(parts["weight"]), parts["targets"], Terms())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken once"):
        loss.backward()


def test_a_divergence_needs_a_teacher() -> None:
    parts = make_parts()
    with pytest.raises(ValueError, match="no teacher"):
        linear_loss(parts["hidden"], Head(parts["weight"]), parts["targets"], Terms(alpha=0.5))


def test_no_gradient_is_formed_without_grad_mode() -> None:
    parts = make_parts()
    with torch.no_grad():
        loss, _ = linear_loss(parts["hidden"], Head(parts["weight"]), parts["targets"], Terms())
    assert not loss.requires_grad


def test_autocast_uses_bf16_products_and_stays_near() -> None:
    parts = make_parts()
    exact, _ = reference(parts, Terms(alpha=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = ours(parts, Terms(alpha=0.5))
    assert float(loss) == pytest.approx(float(exact), rel=1e-2)
    assert all(g.dtype == torch.float32 for g in gradients)


def test_logits_scaled_in_an_unknown_way_are_refused() -> None:
    class Config:
        model_type = "cohere"
        logit_scale = 0.06

    class Model:
        config = Config()

    with pytest.raises(Exception, match="logit_scale"):
        Head.of(Model())
