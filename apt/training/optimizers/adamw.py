"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), fused."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from apt.training.optimizers.groups import decay_groups
from apt.training.sections import Section


class AdamWOptions(Section):
    """Options of ``adamw``; ``weight_decay`` acts on matrices only."""

    name: Literal["adamw"] = Field(default="adamw", description="The component.")
    lr: float = Field(default=1e-3, gt=0.0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.0, ge=0.0, description="Decoupled decay of matrices; vectors have none.")
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0, description="Decay of AdamW's mean of the gradients.")
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0, description="Decay of AdamW's mean of their squares.")


def build(parameters: Sequence[tuple[str, torch.nn.Parameter]], options: AdamWOptions) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters: matrices with weight decay, vectors without."""
    groups = decay_groups(parameters, options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=True)
