"""Rows of tokens as the runner reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apt.console.errors import BadInputError, UsageError
from apt.training.contract import counted


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

    def split(self, n: int) -> "tuple[TokenRows, TokenRows]":
        """Set ``n`` rows aside, evenly spread: ``(the others, the set aside)``.

        :raises UsageError: when fewer than one row would stay.
        """
        if not 0 < n < len(self):
            raise UsageError(f"cannot set {n} of {len(self)} rows aside for evaluation", hint="give more text")
        chosen = torch.linspace(0, len(self) - 1, n).round().long()
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[chosen] = False
        return TokenRows(self.ids[rest], self.labels[rest]), TokenRows(self.ids[chosen], self.labels[chosen])


class RowsDataset(Dataset[dict[str, Tensor]]):
    """The rows one by one, as ``transformers.Trainer`` wants them."""

    def __init__(self, rows: TokenRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._rows.ids[index], "labels": self._rows.labels[index]}


def stack(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate examples into a batch of ``[rows, window]`` tensors."""
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
