"""Relational distillation against loops over rows in float64."""

import itertools
from typing import Any

import pytest
import torch
from training_helpers import small_model, small_rows

from apt.training.components import build_loss
from apt.training.contract import Resources
from apt.training.losses.distill import DistillLossOptions
from apt.training.losses.relation import RelationSettings, pooled, relations

KINDS = ("distance", "angle", "cosine")


def by_hand(kind: str, points: torch.Tensor) -> list[torch.Tensor]:
    n = range(len(points))
    if kind == "cosine":
        return [points[i] @ points[j] / points[i].norm() / points[j].norm() for i, j in itertools.combinations(n, 2)]
    if kind == "distance":
        found = [(points[i] - points[j]).norm() for i, j in itertools.combinations(n, 2)]
        return [f / (sum(found) / len(found)) for f in found]
    angles = []
    for j in n:
        for i, k in itertools.combinations([i for i in n if i != j], 2):
            a, b = points[i] - points[j], points[k] - points[j]
            angles.append(a @ b / a.norm() / b.norm())
    return angles


@pytest.mark.parametrize("kind", KINDS)
def test_relations_are_those_written_out(kind: Any) -> None:
    points = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(relations(kind, points), torch.stack(by_hand(kind, points)), atol=1e-12)


def call(kind: Any, student: Any, teacher: Any, batch: Any) -> Any:
    options = DistillLossOptions(strategy="relation", relation=RelationSettings(kind=kind, weight=2.0), alpha=0.75)
    loss = build_loss(options, resources=Resources(teacher=teacher, model=student))
    return loss(student, batch, rng=torch.Generator(), step=0)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_written_out(kind: Any) -> None:
    student = small_model(0).double()
    teacher = small_model(1, hidden_size=48, num_attention_heads=6).double().eval().requires_grad_(False)
    rows = small_rows(5)
    labels = rows.labels.clone()
    labels[1, 4:] = -100
    labels[3] = -100  # no point of the batch
    batch = {"input_ids": rows.ids, "labels": labels}
    out = call(kind, student, teacher, batch)
    found = torch.autograd.grad(out.loss_sum, list(student.parameters()))
    sides = []
    for model in (student, teacher):
        states = model(input_ids=rows.ids, output_hidden_states=True).hidden_states[-1]
        points = [states[i, :-1][labels[i, 1:] != -100].mean(0) for i in (0, 1, 2, 4)]
        sides.append(torch.stack(by_hand(kind, torch.stack(points))))
    weight = int((labels[:, 1:] != -100).sum())
    huber = torch.nn.functional.smooth_l1_loss(*sides)
    entropy = torch.nn.functional.cross_entropy(
        student(input_ids=rows.ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    wanted_sum = 0.75 * 2.0 * weight * huber + 0.25 * entropy
    wanted = torch.autograd.grad(wanted_sum, list(student.parameters()))
    assert float(out.loss_sum.detach()) == pytest.approx(float(wanted_sum.detach()), rel=1e-6)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert set(out.metrics) == {"loss/ce", "loss/relation"}


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_rows_and_equal_rows_give_finite_gradients(kind: Any) -> None:
    student, teacher = small_model(), small_model(1).eval().requires_grad_(False)
    rows = small_rows(1)
    one = {"input_ids": rows.ids, "labels": rows.labels}
    same = {k: v.repeat(4, 1) for k, v in one.items()}
    for batch in (one, same):
        out = call(kind, student, teacher, batch)
        gradients = torch.autograd.grad(out.loss_sum, list(student.parameters()))
        assert all(g.isfinite().all() for g in gradients)
    assert float(call(kind, student, teacher, one).metrics["loss/relation"].sum) == 0.0


def test_a_student_that_is_its_teacher_has_no_loss() -> None:
    model, rows = small_model(), small_rows(4)
    batch = {"input_ids": rows.ids, "labels": rows.labels}
    for kind in KINDS:
        assert abs(float(call(kind, model, model, batch).metrics["loss/relation"].sum)) < 1e-6


def test_a_row_is_the_mean_of_its_tokens() -> None:
    states = torch.tensor([[1.0, 3.0], [3.0, 5.0], [7.0, 7.0]])
    assert pooled(states, torch.tensor([1, 1, 4])).tolist() == [[2.0, 4.0], [7.0, 7.0]]
