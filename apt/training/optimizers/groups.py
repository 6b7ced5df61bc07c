"""Groups of parameters with options of their own."""

from collections.abc import Sequence
from typing import Any

import torch


def decay_groups(parameters: Sequence[tuple[str, torch.nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups: matrices with weight decay, vectors (norms, biases) without."""
    trainable = [p for _, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
