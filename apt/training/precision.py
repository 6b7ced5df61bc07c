"""Which dtype matrix products run in."""

from typing import Any, Final

import torch

#: Below this width the casts of autocast cost more than bf16 products save (measured on AVX-512 BF16).
MIN_BF16_HIDDEN: Final = 128


def machine_has_bf16(device: torch.device) -> bool:
    """Whether the machine multiplies bf16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def autocast_dtype(precision: str, device: torch.device, config: Any) -> torch.dtype | None:
    """Return the dtype for autocast, or ``None`` for full precision; see :class:`apt.training.config.TrainSection`."""
    if precision == "bf16":
        return torch.bfloat16
    wide_enough = getattr(config, "hidden_size", MIN_BF16_HIDDEN) >= MIN_BF16_HIDDEN
    return torch.bfloat16 if precision == "auto" and wide_enough and machine_has_bf16(device) else None
