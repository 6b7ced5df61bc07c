"""Learning-rate schedules: pure functions ``(step, total steps, options) -> factor``, so that a resume needs no more
than the step.
"""

import math
from typing import Final, Literal

from pydantic import Field

from apt.training.sections import Section

_WARMUP: Final = "Share of the run in which the rate rises linearly from 0 to its peak."
_FINAL: Final = "The rate at the end, as a share of its peak."


class CosineOptions(Section):
    """Options of ``cosine``; shares are of the whole run."""

    name: Literal["cosine"] = Field(default="cosine", description="The component.")
    warmup_share: float = Field(default=0.05, ge=0.0, lt=1.0, description=_WARMUP)
    final_share: float = Field(default=0.0, ge=0.0, le=1.0, description=_FINAL)


class LinearOptions(Section):
    """Options of ``linear``: warm-up, a constant stretch, then linear decay over the last ``decay_share``."""

    name: Literal["linear"] = Field(default="linear", description="The component.")
    warmup_share: float = Field(default=0.05, ge=0.0, lt=1.0, description=_WARMUP)
    decay_share: float = Field(default=1.0, gt=0.0, le=1.0, description="Share of the run that the decay takes.")
    final_share: float = Field(default=0.0, ge=0.0, le=1.0, description=_FINAL)


class ConstantOptions(Section):
    """Options of ``constant``."""

    name: Literal["constant"] = Field(default="constant", description="The component.")
    warmup_share: float = Field(default=0.0, ge=0.0, lt=1.0, description=_WARMUP)


def _warmup(step: int, total: int, share: float) -> float:
    return min(1.0, (step + 1) / max(1.0, share * total))


def _rest(step: int, total: int, begin: float) -> float:
    """Progress from 0 to 1 between ``begin`` (a share of the run) and the end."""
    start = begin * total
    return min(1.0, max(0.0, (step - start) / max(1.0, total - start)))


def cosine(step: int, total: int, options: CosineOptions) -> float:
    """Linear warm-up, then half a cosine down to ``final_share`` of the peak."""
    wave = 0.5 * (1.0 + math.cos(math.pi * _rest(step, total, options.warmup_share)))
    return _warmup(step, total, options.warmup_share) * (options.final_share + (1.0 - options.final_share) * wave)


def linear(step: int, total: int, options: LinearOptions) -> float:
    """Linear warm-up, constant, then a straight line down to ``final_share`` of the peak."""
    begin = max(options.warmup_share, 1.0 - options.decay_share)
    falling = 1.0 - (1.0 - options.final_share) * _rest(step, total, begin)
    return _warmup(step, total, options.warmup_share) * falling


def constant(step: int, total: int, options: ConstantOptions) -> float:
    """Linear warm-up, then the peak."""
    return _warmup(step, total, options.warmup_share)
