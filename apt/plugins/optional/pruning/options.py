"""Options of the operation ``prune``."""

from typing import Literal

from pydantic import Field

from apt.options import ModelRef, Options, OutputPath, Overwrite, TextRef


class PruneOptions(Options):
    """What to prune, how far, and on which text to calibrate."""

    model: ModelRef
    output: OutputPath
    strategy: str = Field(
        default="structured",
        description="A component of kind strategy: structured (smaller) or magnitude (zeros only).",
    )
    ratio: float = Field(default=0.25, gt=0.0, lt=1.0, description="Share of the decoder's linear weights to remove.")
    calibration: TextRef = Field(
        default="self",
        description="Calibration text: embedded, self (sampled from the model), or a .txt, .jsonl or .npz file.",
    )
    tokens: int = Field(default=16384, ge=256, description="Calibration tokens, at most.")
    effort: Literal["fast", "full"] = Field(
        default="fast",
        description="fast: least squares; full: every matrix of a block is refitted, several times slower.",
    )
    overwrite: Overwrite = False
