"""The losses by their contract: masks, sums, metrics, a teacher's padding."""

from typing import Any

import pytest
import torch
from training_helpers import VOCAB, small_model, small_rows

from apt.training.components import build_loss
from apt.training.contract import Resources
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.losses.distill import DistillLossOptions
from apt.training.losses.divergences import DIVERGENCES


def batch_of(n: int = 4) -> dict[str, torch.Tensor]:
    rows = small_rows(n)
    return {"input_ids": rows.ids, "labels": rows.labels.clone()}


def call(loss: Any, model: Any, batch: Any) -> Any:
    return loss(model, batch, rng=torch.Generator(), step=0)


def test_ce_is_transformers_loss_times_its_weight() -> None:
    model, batch = small_model(), batch_of()
    batch["labels"][1] = -100
    batch["labels"][2, 5:] = -100
    out = call(build_loss(CrossEntropyOptions()), model, batch)
    wanted = model(**batch).loss
    assert int(out.weight) == 15 + 4 + 15
    assert float(out.loss_sum.detach() / out.weight) == pytest.approx(float(wanted.detach()), rel=1e-6)
    gradients = torch.autograd.grad(out.loss_sum / out.weight, list(model.parameters()))
    expected = torch.autograd.grad(wanted, list(model.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("options", [CrossEntropyOptions(), DistillLossOptions(alpha=0.5)])
def test_a_batch_that_counts_nothing_gives_zero_with_a_gradient(options: Any) -> None:
    model, batch = small_model(), batch_of()
    batch["labels"][:] = -100
    out = call(build_loss(options, resources=Resources(teacher=small_model(1))), model, batch)
    out.loss_sum.backward()
    assert float(out.loss_sum.detach()) == 0.0 and int(out.weight) == 0
    assert all(p.grad is None or float(p.grad.abs().sum()) == 0.0 for p in model.parameters())


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_a_student_that_is_its_teacher_has_no_loss(divergence: Any) -> None:
    model = small_model()
    loss = build_loss(DistillLossOptions(alpha=1.0, divergence=divergence), resources=Resources(teacher=model))
    out = call(loss, model, batch_of())
    assert abs(float(out.loss_sum.detach())) / int(out.weight) < 1e-6
    assert float(out.metrics["kd/top1_agree"].sum) == int(out.weight)


def test_padding_of_the_teachers_vocabulary_changes_nothing() -> None:
    student, teacher = small_model(), small_model(1)
    padded = small_model(1, vocab_size=VOCAB + 32)
    with torch.no_grad():
        state = teacher.state_dict()
        for name, value in padded.state_dict().items():
            value[: len(state[name])] = state[name]
    options, batch = DistillLossOptions(alpha=1.0), batch_of()
    plain = call(build_loss(options, resources=Resources(teacher=teacher)), student, batch)
    shared = call(build_loss(options, resources=Resources(teacher=padded, shared_vocab=VOCAB)), student, batch)
    assert float(shared.loss_sum.detach()) == pytest.approx(float(plain.loss_sum.detach()), rel=1e-6)


def test_masked_tokens_do_not_reach_the_distillation_term() -> None:
    student, teacher, batch = small_model(), small_model(1), batch_of()
    loss = build_loss(DistillLossOptions(alpha=1.0), resources=Resources(teacher=teacher))
    whole = call(loss, student, batch)
    halves = []
    for keep in (slice(1, 8), slice(8, 16)):
        labels = torch.full_like(batch["labels"], -100)
        labels[:, keep] = batch["labels"][:, keep]
        halves.append(call(loss, student, {**batch, "labels": labels}))
    assert sum(int(h.weight) for h in halves) == int(whole.weight)
    total = sum(float(h.loss_sum.detach()) for h in halves)
    assert total == pytest.approx(float(whole.loss_sum.detach()), rel=1e-6)
