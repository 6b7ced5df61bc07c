"""A teacher in memory: no wider than it is used, and never trained."""

from typing import Any

import torch

from apt.checkpoint.reader import Checkpoint
from apt.training.components import sections_of
from apt.training.config import TrainConfig
from apt.training.precision import autocast_dtype


def load_teacher(checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> Any:
    """Load a run's teacher in evaluation mode, without gradients."""
    teacher = checkpoint.load(dtype=teacher_dtype(config, device), device=str(device))
    teacher.requires_grad_(False)
    return teacher


def teacher_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return what the config says; else the dtype of the products: without training, no wider weights are needed."""
    stated = {getattr(s, "dtype", "auto") for kind, s in sections_of(config) if kind == "teacher"} - {"auto"}
    if stated:
        return torch.bfloat16 if stated == {"bf16"} else torch.float32
    return autocast_dtype(config.train.precision, device) or torch.float32
