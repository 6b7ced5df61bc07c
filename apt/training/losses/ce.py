"""Cross-entropy on the labels."""

from typing import Any, Literal

import torch
from pydantic import Field

from apt.training.contract import Batch, LossOut, Metric, Resources, token_weights, weight_of
from apt.training.forward import last_hidden, targets_of
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms
from apt.training.sections import Section


class CrossEntropyOptions(Section):
    """Options of ``ce``."""

    name: Literal["ce"] = Field(default="ce", description="The component.")
    label_smoothing: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the target that is spread evenly over the vocabulary."
    )
    z_loss: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of the squared log-normaliser of the logits, which keeps them from drifting (PaLM, "
        "arXiv 2204.02311, uses 0.0001).",
    )


class CrossEntropy:
    """Mean negative log-likelihood of the next token, optionally against smoothed labels and with a z-loss."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: CrossEntropyOptions, resources: Resources) -> None:
        self._terms = Terms(label_smoothing=options.label_smoothing, z_loss=options.z_loss)

    def __call__(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        """Return the summed cross-entropy; metric ``loss/ce`` is without smoothing and z-loss."""
        hidden = last_hidden(model, batch)
        loss, sums = linear_loss(hidden, Head.of(model), targets_of(batch), self._terms, weights=token_weights(batch))
        weight = weight_of(batch)
        return LossOut(loss, weight, {"loss/ce": Metric(sums.cross_entropy, weight)})
