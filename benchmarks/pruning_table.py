"""What the benchmarks of pruning share: a model with its text, and the rows of a table of perplexities.

Not a script of its own. Calibration is on the split ``calibration`` of the text; ``heldout`` is only measured on, each
row of it a window of its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.reader import Checkpoint
from apt.evaluation.scoring import perplexity, score_rows
from apt.evaluation.texts import Rows, load_rows
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes

#: Columns of :meth:`Row.told`. ``gap``: how much more the loss has risen on held-out text than on the text that was
#: fitted, in nats per token.
HEADER: Final = f"{'':<24}{'gone':>8}{'held-out':>11} {'95 %':^22}{'calibr.':>11}{'gap':>8}{'CPU s':>9}  plan"


@dataclass(frozen=True)
class Row:
    """A measured model.

    :param share: of the decoder's linear weights that is gone or zero.
    :param value: perplexity on held-out text; ``interval`` its 95 %; ``calibration`` that on calibration text.
    :param cpu_seconds: that the pruning took.
    """

    name: str
    share: float
    value: float
    interval: tuple[float, float]
    calibration: float
    cpu_seconds: float
    plan: str = ""

    def told(self, dense: "Row | None" = None) -> str:
        """Return the line of the table; with the dense row the gap is in it."""
        gap = ""
        if dense is not None:
            gap = f"{math.log(self.value / dense.value) - math.log(self.calibration / dense.calibration):+.3f}"
        low, high = self.interval
        line = (
            f"{self.name:<24}{self.share:8.2%}{self.value:11.3f} [{low:9.3f}, {high:9.3f}]{self.calibration:11.3f}"
            f"{gap:>8}{self.cpu_seconds:9.1f}  {self.plan}"
        )
        return line.rstrip()


@dataclass(frozen=True)
class Subject:
    """A model in float32, and its text."""

    model: Any
    architecture: Architecture
    calibration: Rows
    heldout: Rows

    @classmethod
    def open(cls, model: str, text: str, tokens: int = 16384) -> "Subject":
        """Load model and text; at most about ``tokens`` calibration tokens."""
        checkpoint = Checkpoint.open(model)
        loaded = checkpoint.load(dtype=torch.float32)
        heldout = load_rows(text, split="heldout", checkpoint=checkpoint)
        rows = max(1, tokens // heldout.ids.shape[1])
        calibration = load_rows(text, split="calibration", checkpoint=checkpoint, max_rows=rows)
        return cls(loaded, checkpoint.architecture, calibration, heldout)

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of the dense model, where its family can be cut."""
        return sizes_of(self.architecture, self.model.config.to_dict())

    def decoder(self, model: Any = None) -> Decoder:
        """Return the decoder of a model of this family, the dense one by default."""
        return Decoder.of(self.model if model is None else model, self.architecture)

    def measured(self, name: str, share: float, model: Any, seconds: float, plan: str = "") -> Row:
        """Score a model on both splits."""
        told = perplexity(score_rows(model, self.heldout))
        fitted = perplexity(score_rows(model, self.calibration))
        return Row(name, share, told.value, (told.low, told.high), fitted.value, seconds, plan)

    def dense_row(self) -> Row:
        """Score the model as it is."""
        return self.measured("dense", 0.0, self.model, 0.0)
