"""What a user asks of a cut: a share of the weights, an N:M pattern, or a size or speed to reach."""

import re
from dataclasses import dataclass
from typing import Final

from apt.console.errors import UsageError

_PATTERN: Final = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """N:M sparsity: of every ``group`` neighbouring inputs of an output, at most ``kept`` weights are not zero."""

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read ``2:4``.

        :raises UsageError: for anything but two whole numbers, the first below the second.
        """
        match = _PATTERN.fullmatch(text)
        if match is None or int(match[1]) >= int(match[2]):
            raise UsageError(f"--pattern {text!r} is no N:M pattern", hint="such as 2:4 or 4:8: N of every M are kept")
        return cls(int(match[1]), int(match[2]))

    @property
    def share(self) -> float:
        """Share of the weights that goes."""
        return 1.0 - self.kept / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked; exactly one field is given.

    :param ratio: share of the decoder's linear weights to remove, between 0 and 1.
    :param parameters: parameters that the cut model may have, embeddings and head among them.
    :param size_bytes: bytes that its tensors may take in the stored dtype.
    :param speed: how many times the dense model's measured decode speed it is to reach.
    """

    ratio: float | None = None
    pattern: Pattern | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.ratio, self.pattern, self.parameters, self.size_bytes, self.speed) if v is not None]
        if len(given) != 1:
            raise UsageError("give one of --ratio, --pattern, --target-params, --target-bytes and --target-speed")
        if self.ratio is not None and not 0.0 < self.ratio < 1.0:
            raise UsageError(f"the share {self.ratio:g} of the weights is not between 0 and 1")

    @property
    def share(self) -> float | None:
        """Share of the linear weights that a ratio or a pattern removes; ``None`` for the other goals."""
        return self.pattern.share if self.pattern else self.ratio

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"{self.ratio:.1%} of the linear weights"
        if self.pattern is not None:
            return str(self.pattern)
        if self.parameters is not None:
            return f"{self.parameters:,} parameters"
        if self.size_bytes is not None:
            return f"{self.size_bytes:,} bytes"
        return f"{self.speed:g} times the speed"
