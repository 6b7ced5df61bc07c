"""Samplers that go through all rows, epoch after epoch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from apt.training.contract import RowSource
from apt.training.sections import Section


class SequentialOptions(Section):
    """Options of ``sequential``: the rows in their order, again and again."""

    name: Literal["sequential"] = Field(default="sequential", description="The component.")


class ShuffledOptions(Section):
    """Options of ``shuffled``: the rows in an order of their own in every epoch."""

    name: Literal["shuffled"] = Field(default="shuffled", description="The component.")


class Epochs(ABC):
    """Goes through an order of all rows, then through the next epoch's; a batch may span two epochs.

    Every row is seen once before any is seen again. The order of an epoch depends on the seed and its number only, so
    that the state is two numbers.
    """

    def __init__(self, n_rows: int, batch_rows: int) -> None:
        self._n_rows = n_rows
        self._batch_rows = batch_rows
        self._epoch = 0
        self._cursor = 0

    @abstractmethod
    def order(self, epoch: int) -> list[int]:
        """Return the rows in the order of an epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches without end."""
        order = self.order(self._epoch)
        while True:
            batch: list[int] = []
            while len(batch) < self._batch_rows:
                if self._cursor == len(order):
                    self._epoch, self._cursor = self._epoch + 1, 0
                    order = self.order(self._epoch)
                taken = order[self._cursor : self._cursor + self._batch_rows - len(batch)]
                batch += taken
                self._cursor += len(taken)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and cursor."""
        return {"epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an epoch and a cursor."""
        self._epoch, self._cursor = int(state["epoch"]), int(state["cursor"])


class Sequential(Epochs):
    """The rows in their order."""

    def __init__(self, options: SequentialOptions, source: RowSource, *, batch_rows: int, seed: int) -> None:
        super().__init__(len(source), batch_rows)

    def order(self, epoch: int) -> list[int]:
        """Return the rows in their order."""
        return list(range(self._n_rows))


class Shuffled(Epochs):
    """The rows in an order of their own in every epoch."""

    def __init__(self, options: ShuffledOptions, source: RowSource, *, batch_rows: int, seed: int) -> None:
        super().__init__(len(source), batch_rows)
        self._seed = seed

    def order(self, epoch: int) -> list[int]:
        """Return a permutation that depends on the seed and the epoch."""
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        return torch.randperm(self._n_rows, generator=generator).tolist()
