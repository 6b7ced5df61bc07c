"""Focal loss on the labels."""

from typing import Any, Literal

import torch
from pydantic import Field

from apt.training.contract import Batch, LossOut, Metric, Resources, token_weights, weight_of
from apt.training.forward import last_hidden, targets_of
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms
from apt.training.sections import Section


class FocalOptions(Section):
    """Options of ``focal``."""

    name: Literal["focal"] = Field(default="focal", description="The component.")
    gamma: float = Field(
        default=2.0,
        ge=0.0,
        le=10.0,
        description="The loss of a token is multiplied by (1 - probability of its label) to this power; 0 is "
        "cross-entropy.",
    )


class Focal:
    """``(1 - p)^gamma * -log p`` of the label: tokens that are known well already count less.

    Lin et al., arXiv 1708.02002, section 3.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, options: FocalOptions, resources: Resources) -> None:
        self._terms = Terms(focal_gamma=options.gamma)

    def __call__(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        """Return the summed focal loss; metrics ``loss/focal``, and ``loss/ce`` as plain cross-entropy."""
        hidden = last_hidden(model, batch)
        loss, sums = linear_loss(hidden, Head.of(model), targets_of(batch), self._terms, weights=token_weights(batch))
        weight = weight_of(batch)
        metrics = {"loss/focal": Metric(loss.detach(), weight), "loss/ce": Metric(sums.cross_entropy, weight)}
        return LossOut(loss, weight, metrics)
