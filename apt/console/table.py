"""A table as data: what a result shows to people, before anything decides how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of text cells; ``rows`` are as long as ``columns``."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@runtime_checkable
class Result(Protocol):
    """What every operation returns: a frozen dataclass of plain values that can show itself as tables.

    The dataclass's fields are the ``--json`` output (see :func:`apt.console.output.to_jsonable`): units are in the
    field names (``size_bytes``, ``seconds``, ``tokens_per_second``), quality figures carry their interval.
    """

    def tables(self) -> list[Table]:
        """Return the tables shown to a person."""
        ...
