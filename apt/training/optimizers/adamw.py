"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), fused."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

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
    trainable = [p for _, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=options.lr, betas=(options.beta1, options.beta2), fused=True
    )
