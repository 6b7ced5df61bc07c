"""Easy rows first."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from apt.console.errors import BadInputError
from apt.training.contract import RowSource
from apt.training.samplers.epochs import Shuffled, ShuffledOptions
from apt.training.samplers.orders import generator
from apt.training.sections import Section


class CurriculumOptions(Section):
    """Options of ``curriculum``: easy rows first."""

    name: Literal["curriculum"] = Field(default="curriculum", description="The component.")
    by: str = Field(
        default="length",
        min_length=1,
        description="What makes a row hard: length, or a column of numbers that the data keeps (difficulty).",
    )
    start_share: float = Field(
        default=0.1, gt=0.0, le=1.0, description="Share of the rows, the easiest, that a run begins with."
    )
    over_batches: int = Field(
        ge=1, description="Micro-batches, of all processes, until every row may come; the share grows evenly."
    )


class Curriculum:
    """Draws from the easiest rows, ever more of them; when all may come, goes through all of them in shuffled epochs.

    The pace is the linear competence of Platanios et al. (arXiv 1903.09848). While it grows, each batch is drawn anew:
    its rows are different ones, as far as there are enough, but may have been in an earlier batch.
    """

    def __init__(self, options: CurriculumOptions, source: RowSource, *, batch_rows: int, seed: int) -> None:
        hardness = [_hardness(source, i, options.by) for i in range(len(source))]
        self._easiest_first = sorted(range(len(source)), key=lambda row: hardness[row])
        self._options = options
        self._batch_rows = batch_rows
        self._seed = seed
        self._batch = 0
        self._epochs = Shuffled(ShuffledOptions(), source, batch_rows=batch_rows, seed=seed)

    def pool(self, batch: int) -> int:
        """Return how many of the easiest rows may come in a batch."""
        start = self._options.start_share
        share = start + (1.0 - start) * min(1.0, batch / self._options.over_batches)
        return min(len(self._easiest_first), math.ceil(share * len(self._easiest_first)))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches without end."""
        while self._batch < self._options.over_batches:
            drawn = self._drawn(self._batch)
            self._batch += 1
            yield drawn
        yield from self._epochs

    def _drawn(self, batch: int) -> list[int]:
        pool, random = self.pool(batch), generator(self._seed, "curriculum", batch)
        places: list[int] = []
        while len(places) < self._batch_rows:
            places += torch.randperm(pool, generator=random)[: self._batch_rows - len(places)].tolist()
        return [self._easiest_first[place] for place in places]

    def state_dict(self) -> dict[str, Any]:
        """Return the batches that were drawn, and the place in the epochs behind them."""
        return {"batch": self._batch, "epochs": self._epochs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._batch = int(state["batch"])
        self._epochs.load_state_dict(state["epochs"])


def _hardness(source: RowSource, index: int, by: str) -> float:
    if by == "length":
        return source.length(index)
    value = source.meta(index).get(by)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadInputError(
            f"train.sampler.by: row {index + 1} has no number in {by!r}, got {value!r}",
            hint="packed rows have none; use padded ones, or length",
        )
    return value
