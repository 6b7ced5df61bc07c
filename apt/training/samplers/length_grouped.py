"""Batches of rows of like length: less of each batch is padding."""

from typing import Literal

from pydantic import Field

from apt.training.contract import RowSource
from apt.training.samplers.epochs import Epochs
from apt.training.samplers.orders import permutation
from apt.training.sections import Section


class LengthGroupedOptions(Section):
    """Options of ``length_grouped``: batches of like length."""

    name: Literal["length_grouped"] = Field(default="length_grouped", description="The component.")
    chunk_batches: int = Field(
        default=50,
        ge=1,
        description="Batches that are sorted by length together: the more, the less padding and the less chance.",
    )


class LengthGrouped(Epochs):
    """Shuffles the rows, sorts each chunk of them by length, cuts it into batches and shuffles these.

    The very first batch of a run holds the longest row: what does not fit in memory fails at the first step.
    """

    def __init__(self, options: LengthGroupedOptions, source: RowSource, *, batch_rows: int, seed: int) -> None:
        super().__init__(len(source), batch_rows)
        self._chunk_rows = options.chunk_batches * batch_rows
        self._lengths = [source.length(i) for i in range(len(source))]
        self._seed = seed

    def order(self, epoch: int) -> list[int]:
        """Return the rows batch after batch.

        Where the rows are no multiple of the batch, the first ones of an epoch fill the last batch of the one before.
        """
        rows = permutation(self._n_rows, self._seed, "rows", epoch)
        lead = min(-epoch * self._n_rows % self._batch_rows, self._n_rows)
        first, rest = rows[:lead], rows[lead:]
        batches = [
            batch
            for begin in range(0, len(rest), self._chunk_rows)
            for batch in self._batches(rest[begin : begin + self._chunk_rows])
        ]
        last = [batches.pop()] if batches and len(batches[-1]) < self._batch_rows else []
        mixed = [batches[i] for i in permutation(len(batches), self._seed, "batches", epoch)]
        if epoch == 0 and mixed:
            mixed.insert(0, mixed.pop(max(range(len(mixed)), key=lambda i: self._longest(mixed[i]))))
        return first + [row for batch in (*mixed, *last) for row in batch]

    def _batches(self, chunk: list[int]) -> list[list[int]]:
        """The rows of a chunk in batches, long ones first, so that the batch that is not full has the shortest."""
        ordered = sorted(chunk, key=lambda row: -self._lengths[row])
        return [ordered[b : b + self._batch_rows] for b in range(0, len(ordered), self._batch_rows)]

    def _longest(self, batch: list[int]) -> int:
        return max(self._lengths[row] for row in batch)
