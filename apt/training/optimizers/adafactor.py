"""Adafactor (Shazeer & Stern, arXiv 1804.04235): second moments of a matrix by a row and a column.

This is torch's own. Unlike the one of transformers it takes its learning rate from the run's schedule alone, has
decoupled weight decay, and keeps its state in tensors only, which a saved run brings back exactly. As in the paper, a
step is relative to the size of what it changes: ``lr`` times the root mean square of the parameter.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from apt.training.optimizers.groups import decay_groups
from apt.training.sections import Section


class AdafactorOptions(Section):
    """Options of ``adafactor``; ``weight_decay`` acts on matrices only."""

    name: Literal["adafactor"] = Field(default="adafactor", description="The component.")
    lr: float = Field(
        default=1e-2,
        gt=0.0,
        description="Peak learning rate, relative to the size of a parameter; at step n never above 1/sqrt(n).",
    )
    weight_decay: float = Field(default=0.0, ge=0.0, description="Decoupled decay of matrices; vectors have none.")
    beta2_decay: float = Field(
        default=-0.8, lt=0.0, description="The second moments' decay at step n is 1 - n ** beta2_decay."
    )
    clip_threshold: float = Field(
        default=1.0, gt=0.0, description="Updates with a larger root mean square are cut to it."
    )


def build(parameters: Sequence[tuple[str, torch.nn.Parameter]], options: AdafactorOptions) -> torch.optim.Optimizer:
    """Return Adafactor over the trainable parameters: matrices with weight decay, vectors without."""
    groups = decay_groups(parameters, options.weight_decay)
    return torch.optim.Adafactor(groups, lr=options.lr, beta2_decay=options.beta2_decay, d=options.clip_threshold)
