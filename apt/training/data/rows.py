"""Rows in memory, and how rows become batches."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import TypeIs

from apt.console.errors import BadInputError, UsageError
from apt.training.contract import IGNORED, Batch, Row, RowSource, RowStream, counted

#: What a batch's rows are filled up with; attention is causal, so that nothing before it sees it.
_FILL: Final[Mapping[str, float]] = {"labels": IGNORED, "weights": 0.0}


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token rows of one length.

    :param ids: ``[rows, window]``.
    :param labels: ``[rows, window]``, unshifted; -100 where a token is not trained on.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __getitem__(self, index: int) -> Row:
        """Return one row."""
        return {"input_ids": self.ids[index], "labels": self.labels[index]}

    def length(self, index: int) -> int:
        """Return the tokens of a row, up to the last one that counts."""
        counts = (self.labels[index] != IGNORED).nonzero()
        return int(counts[-1]) + 1 if len(counts) else 1

    def part(self, index: int) -> str:
        """Return ``""``: the rows have no parts."""
        return ""

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return nothing."""
        return {}

    def digest(self) -> str:
        """Return the sha256 of the ids and labels."""
        held = hashlib.sha256()
        for tensor in (self.ids, self.labels):
            held.update(str(tuple(tensor.shape)).encode())
            held.update(tensor.numpy().tobytes())
        return held.hexdigest()

    @property
    def window(self) -> int:
        """Number of tokens of each row."""
        return int(self.ids.shape[1])

    @property
    def tokens(self) -> int:
        """Number of tokens that are trained on."""
        return int(counted(self.labels).sum())

    def check(self, vocab_size: int) -> None:
        """Refuse rows that a model with that vocabulary cannot read.

        :raises BadInputError: for an empty set, shapes that differ, ids outside the vocabulary, or nothing counted.
        """
        if self.ids.ndim != 2 or self.ids.shape != self.labels.shape or not len(self):
            raise BadInputError(f"training rows have shapes {tuple(self.ids.shape)} and {tuple(self.labels.shape)}")
        low, high = int(self.ids.min()), int(self.ids.max())
        if low < 0 or high >= vocab_size or int(self.labels.max()) >= vocab_size:
            raise BadInputError(
                f"training rows hold token ids from {low} to {high}; the model's vocabulary ends at {vocab_size - 1}",
                hint="the rows were made with another tokenizer",
            )
        if not self.tokens:
            raise BadInputError("no token of the training rows is to be trained on")


class Chosen:
    """Some rows of a source, as a source."""

    def __init__(self, source: RowSource, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = list(indices)
        #: The most tokens of a row, where the source knows.
        self.window: int = getattr(source, "window", 0)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Return one row."""
        return self._source[self._indices[index]]

    def length(self, index: int) -> int:
        """Return a row's number of tokens."""
        return self._source.length(self._indices[index])

    def part(self, index: int) -> str:
        """Return the name of the part that a row is of."""
        return self._source.part(self._indices[index])

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return what is known of a row beside its tokens."""
        return self._source.meta(self._indices[index])

    @property
    def origin(self) -> RowSource:
        """The source that the rows come from, in which they have their numbers."""
        return self._source.origin if isinstance(self._source, Chosen) else self._source

    def number(self, index: int) -> int:
        """Return the row's number in :attr:`origin`."""
        inner = self._indices[index]
        return self._source.number(inner) if isinstance(self._source, Chosen) else inner

    def digest(self) -> str:
        """Return a sha256 of the source and the choice."""
        return hashlib.sha256(f"{self._source.digest()} {self._indices}".encode()).hexdigest()


def is_stream(data: RowSource | RowStream) -> TypeIs[RowStream]:
    """Whether rows come one after another only."""
    return not hasattr(data, "__len__")


def longest_row(data: RowSource | RowStream) -> int:
    """Return the most tokens of a row, as far as that can be told without reading the rows."""
    longest: int = getattr(data, "window", 0)
    return longest or sys.maxsize


def evenly(total: int, n: int) -> list[int]:
    """Return at most ``n`` of the numbers below ``total``, evenly spread."""
    # In float64: float32 has no number for every row of a large source.
    return torch.linspace(0, total - 1, min(n, total), dtype=torch.float64).round().long().tolist()


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def set_aside(source: RowSource, n: int) -> tuple[Chosen, Chosen]:
    """Set ``n`` rows aside, evenly spread: ``(the others, the set aside)``.

    :raises UsageError: when fewer than one row would stay.
    """
    if not 0 < n < len(source):
        raise UsageError(f"cannot set {n} of {len(source)} rows aside for evaluation", hint="give more text")
    chosen = evenly(len(source), n)
    taken = set(chosen)
    return Chosen(source, [i for i in range(len(source)) if i not in taken]), Chosen(source, chosen)


def held_out(
    data: RowSource | RowStream, evaluation: RowSource | None, n: int, *, batch_rows: int
) -> tuple[RowSource | RowStream, RowSource]:
    """Return what is trained on, and the rows that the best weights are chosen by.

    These are at most ``n`` of ``evaluation``, evenly spread; where there is none, ``n`` of ``data`` are set aside.

    :param batch_rows: rows of a micro-batch: there are to be as many to train on, for none is to be in one twice.
    :raises UsageError: for a stream without ``evaluation``, or too few rows to set some aside.
    :raises BadInputError: when there are fewer rows to train on than a micro-batch has.
    """
    if evaluation is not None:
        training, chosen = data, Chosen(evaluation, evenly(len(evaluation), n))
    elif is_stream(data):
        raise UsageError("no rows can be set aside from a stream", hint="give data.eval")
    else:
        training, chosen = set_aside(data, n)
    if not is_stream(training) and len(training) < batch_rows:
        raise BadInputError(
            f"batch_rows: {batch_rows}; there are {len(training)} rows to train on",
            hint="lower batch_rows or give more text",
        )
    return training, chosen


def batch_of(source: RowSource, indices: Sequence[int]) -> Batch:
    """Return rows of a source as a batch."""
    number = source.number if isinstance(source, Chosen) else int
    batch = dict(collate([source[i] for i in indices]))
    batch["row"] = torch.tensor([number(i) for i in indices])
    batch["meta"] = [{**source.meta(i), "part": source.part(i)} for i in indices]
    return batch


def collate(rows: Sequence[Row]) -> Batch:
    """Fill rows up to the longest one, on the right: labels with -100, all else with 0."""
    keys = {key for row in rows for key in row}
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    batch = {}
    for key in sorted(keys):
        values = [row[key] if key in row else _default(key, n) for row, n in zip(rows, lengths, strict=True)]
        if all(n == longest for n in lengths):
            batch[key] = torch.stack(values)
        else:
            batch[key] = pad_sequence(values, batch_first=True, padding_value=_FILL.get(key, 0))
    return batch


def _default(key: str, length: int) -> Tensor:
    """What a row without an optional tensor has in a batch where others have it."""
    if key == "weights":
        return torch.ones(length)
    return torch.arange(length)  # position_ids
