"""Distillation: the student's next-token distribution drawn to the teacher's."""

from typing import Any, Literal

import torch
from pydantic import Field

from apt.training.components import build
from apt.training.contract import Batch, LossOut, Metric, Resources, token_weights, weight_of
from apt.training.forward import last_hidden, targets_of
from apt.training.losses.divergences import DivergenceName
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms
from apt.training.sections import Section, TeacherSection
from apt.training.teachers.contract import Teacher
from apt.training.teachers.memory import MemoryTeacherOptions


class DistillLossOptions(Section):
    """Options of ``distill``."""

    name: Literal["distill"] = Field(default="distill", description="The component.")
    teacher: TeacherSection = Field(default=MemoryTeacherOptions(), description="A component of kind teacher.")
    divergence: DivergenceName = Field(default="forward_kl", description="Divergence of the student from the teacher.")
    alpha: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Weight of the divergence; the labels' cross-entropy has 1 - alpha."
    )
    temperature: float = Field(
        default=1.0, gt=0.0, le=100.0, description="Divides both sides' logits; the term is multiplied by its square."
    )


class Distill:
    """``alpha * T² * divergence(teacher, student) + (1 - alpha) * cross-entropy`` per counted token."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: DistillLossOptions, resources: Resources) -> None:
        self._teacher: Teacher = build("teacher", options.teacher, resources)
        self._terms = Terms(
            alpha=options.alpha,
            temperature=options.temperature,
            divergence=options.divergence,
            shared_vocab=resources.shared_vocab,
        )

    def __call__(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        """Return the summed loss; metrics ``loss/ce``, ``loss/distill``, ``kd/kl_token`` and ``kd/top1_agree``.

        ``kd/kl_token`` is KL(teacher ‖ student) at temperature 1 in nats per token, whatever is trained on.
        """
        theirs = self._teacher.targets(batch, rng=rng)
        loss, sums = linear_loss(
            last_hidden(model, batch), Head.of(model), targets_of(batch), self._terms, theirs,
            weights=token_weights(batch),
        )  # fmt: skip
        weight = weight_of(batch)
        return LossOut(
            loss,
            weight,
            {
                "loss/ce": Metric(sums.cross_entropy, weight),
                "loss/distill": Metric(sums.divergence, weight),
                "kd/kl_token": Metric(sums.forward_kl, weight),
                "kd/top1_agree": Metric(sums.agreeing, weight),
            },
        )
