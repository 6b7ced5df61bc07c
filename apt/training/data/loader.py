"""Batches for the runner: the sampler's order, this process's share, and where the run stands."""

from collections.abc import Iterator, Mapping
from typing import Any

from apt.training.contract import Batch, Row, RowSource, RowStream, Sampler
from apt.training.data.rows import batch_of, collate


class BatchLoader:
    """Gives one process its micro-batches: of every ``processes`` ones the one with its number.

    Nothing is fetched ahead: the state after a step is the state of the sampler or stream itself.
    """

    def __init__(
        self, data: RowSource | RowStream, sampler: Sampler | None, *, batch_rows: int, batches: int,
        process: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        self._data = data
        self._sampler = sampler
        self._batch_rows = batch_rows
        self._batches = batches
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's micro-batches, without end."""
        if self._sampler is None:
            yield from self._of_stream(iter(self._data))
            return
        orders = iter(self._sampler)
        while True:
            share = [next(orders) for _ in range(self._processes)]
            yield batch_of(self._data, share[self._process])  # type: ignore[arg-type]

    def _of_stream(self, rows: Iterator[Row]) -> Iterator[Batch]:
        """Every process reads the whole stream and makes batches of its share."""
        while True:
            taken = [next(rows) for _ in range(self._batch_rows * self._processes)]
            begin = self._process * self._batch_rows
            batch = dict(collate(taken[begin : begin + self._batch_rows]))
            batch["meta"] = [{} for _ in range(self._batch_rows)]
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the run stands in its data, as JSON values."""
        held: Any = self._sampler if self._sampler is not None else self._data
        state: dict[str, Any] = held.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        held: Any = self._sampler if self._sampler is not None else self._data
        held.load_state_dict(state)
