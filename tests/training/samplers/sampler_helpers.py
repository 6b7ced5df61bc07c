"""Rows of given lengths, parts and meta, without tokens worth speaking of."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Told:
    """A row source that knows of each row what it was told."""

    def __init__(
        self,
        lengths: Sequence[int],
        parts: Sequence[str] | None = None,
        meta: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.lengths = list(lengths)
        self.parts = list(parts) if parts is not None else [""] * len(self.lengths)
        self._meta = list(meta) if meta is not None else [{}] * len(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.full((self.lengths[index],), index)
        return {"input_ids": ids, "labels": ids}

    def length(self, index: int) -> int:
        return self.lengths[index]

    def part(self, index: int) -> str:
        return self.parts[index]

    def meta(self, index: int) -> Mapping[str, Any]:
        return self._meta[index]

    def digest(self) -> str:
        return ""
