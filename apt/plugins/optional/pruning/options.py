"""Options of the operation ``prune``."""

from typing import Literal

from pydantic import Field

from apt.options import ModelRef, Options, OutputPath, TextRef


class PruneOptions(Options):
    """What to prune, how far, and on which text to calibrate.

    ``effort`` is ``fast`` (least squares) or ``full`` (each block's matrices are all refitted; several times slower).
    """

    model: ModelRef
    output: OutputPath
    strategy: str = "structured"
    ratio: float = Field(default=0.25, gt=0.0, lt=1.0, description="Share of the decoder's linear weights to remove.")
    calibration: TextRef = "self"
    tokens: int = Field(default=16384, ge=256, description="Calibration tokens, at most.")
    effort: Literal["fast", "full"] = "fast"
    overwrite: bool = False
