"""Shares of processes, and where a loader stands."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from apt.training.data.loader import BatchLoader


class Counting:
    """A stream of rows that are their own number."""

    def __init__(self) -> None:
        self._next = 0

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        while True:
            self._next += 1
            ids = torch.full((1 + self._next % 3,), self._next - 1)
            yield {"input_ids": ids, "labels": ids}

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = state["next"]

    def digest(self) -> str:
        return ""


def taken(loader: BatchLoader, batches: int) -> list[list[int]]:
    return [batch["input_ids"][:, 0].tolist() for batch in itertools.islice(loader, batches)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_a_stream_without_a_row_in_common(processes: int) -> None:
    shares = [
        taken(BatchLoader(Counting(), None, batch_rows=2, batches=4, process=p, processes=processes), 4)
        for p in range(processes)
    ]
    rows = sorted(row for share in shares for batch in share for row in batch)
    assert rows == list(range(2 * 4 * processes))
    # What the processes see in one step lies together, in the order of the processes.
    assert [row for share in shares for row in share[0]] == list(range(2 * processes))


def test_a_loader_over_a_stream_goes_on_exactly() -> None:
    whole = taken(BatchLoader(Counting(), None, batch_rows=3, batches=9), 9)
    stopped = BatchLoader(Counting(), None, batch_rows=3, batches=9)
    assert taken(stopped, 4) == whole[:4]
    resumed = BatchLoader(Counting(), None, batch_rows=3, batches=9)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert taken(resumed, 5) == whole[4:]
