"""A teacher that knows likely ids, rows of many shapes, and their caches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from training_helpers import VOCAB, small_model

from apt.training.contract import IGNORED, Resources, Row, RowSource
from apt.training.data.rows import batch_of
from apt.training.teachers.cache import CacheTeacher, CacheTeacherOptions
from apt.training.teachers.capture import CaptureOptions, CaptureResult, capture


def teacher_model() -> Any:
    model = small_model(3).eval().requires_grad_(False)
    model.lm_head.weight.mul_(10.0)  # an untrained head knows no likely ids
    return model


def captured(directory: Path, rows: RowSource, **options: Any) -> CaptureResult:
    settings = CaptureOptions(**{"k": 16, "batch_rows": 3, **options})
    return capture(teacher_model(), rows, directory, settings, teacher="t", tokenizer="")


def opened(directory: Path, **resources: Any) -> CacheTeacher:
    return CacheTeacher(CacheTeacherOptions(path=str(directory)), Resources(**resources))


def exact(rows: RowSource, numbers: list[int]) -> torch.Tensor:
    batch = batch_of(rows, numbers)
    with torch.no_grad():
        positions = {k: v for k, v in batch.items() if k == "position_ids"}
        logits = teacher_model()(input_ids=batch["input_ids"], use_cache=False, **positions).logits[:, :-1]
    found: torch.Tensor = torch.log_softmax(logits, -1)[batch["labels"][:, 1:] != -100]
    return found


class Ragged:
    """Rows of different lengths; every third one holds two packed documents."""

    def __init__(self, n: int) -> None:
        rng = torch.Generator().manual_seed(5)
        self._rows: list[dict[str, torch.Tensor]] = []
        for i in range(n):
            length = 3 + 2 * (i % 7)
            ids = torch.randint(VOCAB, (length,), generator=rng)
            labels = torch.where(torch.rand(length, generator=rng) < 0.3, IGNORED, ids)
            positions = torch.arange(length)
            if i % 3 == 0:
                positions[length // 2 :] -= length // 2
            self._rows.append({"input_ids": ids, "labels": labels, "position_ids": positions})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def length(self, index: int) -> int:
        return len(self._rows[index]["input_ids"])

    def part(self, index: int) -> str:
        return ""

    def meta(self, index: int) -> Mapping[str, Any]:
        return {}

    def digest(self) -> str:
        return f"ragged {len(self)}"
