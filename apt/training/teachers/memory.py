"""A teacher that is a model in memory."""

from collections.abc import Set as AbstractSet
from typing import Any, Literal

import torch
from pydantic import Field

from apt.training.contract import Batch, Resources
from apt.training.forward import ATTENTIONS, HIDDEN_STATES, Body, run_body
from apt.training.losses.head import Head
from apt.training.sections import Section
from apt.training.teachers.contract import DenseTargets


class MemoryTeacherOptions(Section):
    """Options of ``memory``."""

    name: Literal["memory"] = Field(default="memory", description="The component.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Of the teacher's weights; auto is what the run's matrix products use."
    )


class MemoryTeacher:
    """A causal language model in evaluation mode, without gradients."""

    needs: frozenset[str] = frozenset({"teacher"})
    offers: frozenset[str] = frozenset({HIDDEN_STATES, ATTENTIONS})

    def __init__(self, options: MemoryTeacherOptions, resources: Resources) -> None:
        assert resources.teacher is not None
        self.model: Any = resources.teacher

    def targets(self, batch: Batch, *, rng: Any = None, body: Body | None = None) -> DenseTargets:
        """Return the hidden states of the counted tokens, and the head."""
        states = body if body is not None else self.body(batch, frozenset())
        return DenseTargets(states.last, Head.of(self.model))

    def body(self, batch: Batch, wanted: AbstractSet[str]) -> Body:
        """Return the teacher's states of a batch."""
        with torch.no_grad():
            return run_body(self.model, batch, wanted)
