"""Several sources as one, each under its name."""

import bisect
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from apt.console.errors import UsageError
from apt.training.components import build
from apt.training.contract import Resources, Row, RowSource
from apt.training.data.rows import is_stream
from apt.training.sections import DataSection, Section


class MixtureOptions(Section):
    """Options of ``mixture``."""

    name: Literal["mixture"] = Field(default="mixture", description="The component.")
    parts: dict[str, DataSection] = Field(min_length=1, description="Components of kind data, by names of your own.")


class Mixture:
    """The rows of all parts, one part behind the other; a sampler decides how often each is seen."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: MixtureOptions, resources: Resources) -> None:
        self._names = list(options.parts)
        self._parts: list[RowSource] = []
        for name, section in options.parts.items():
            part = build("data", section, resources)
            if is_stream(part):
                raise UsageError(f"the part {name!r} streams: a mixture takes rows by number")
            self._parts.append(part)
        self._ends = list(itertools.accumulate(len(p) for p in self._parts))
        windows = [int(getattr(p, "window", 0)) for p in self._parts]
        #: The most tokens of a row, where every part knows.
        self.window = max(windows) if all(windows) else 0

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Row:
        """Return one row."""
        part, inner = self._place(index)
        return self._parts[part][inner]

    def length(self, index: int) -> int:
        """Return a row's number of tokens."""
        part, inner = self._place(index)
        return self._parts[part].length(inner)

    def part(self, index: int) -> str:
        """Return the name of the part that a row is of."""
        return self._names[self._place(index)[0]]

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return what is known of a row beside its tokens."""
        part, inner = self._place(index)
        return self._parts[part].meta(inner)

    def digest(self) -> str:
        """Return a sha256 of the parts and their names."""
        text = "\n".join(f"{name} {part.digest()}" for name, part in zip(self._names, self._parts, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()
