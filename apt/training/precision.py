"""Which dtype matrix products run in."""

import torch


def machine_has_bf16(device: torch.device) -> bool:
    """Whether the machine multiplies bf16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype for autocast, or ``None`` for full precision.

    ``auto`` is bf16 wherever the machine multiplies it natively. With the attention of
    :mod:`apt.training.attention` that gains even at a width of 64 (1.25 times, one thread of AVX-512 BF16; 1.6 times
    at 256), at equal loss.
    """
    if precision == "bf16" or (precision == "auto" and machine_has_bf16(device)):
        return torch.bfloat16
    return None
