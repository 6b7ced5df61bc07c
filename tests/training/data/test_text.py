"""Rows that the teacher writes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_helpers import small_model

from apt.console.errors import UsageError
from apt.training.components import build, needed_by
from apt.training.config import TrainConfig, parse_config
from apt.training.contract import Resources


def config(**section: Any) -> TrainConfig:
    data = {"name": "text", "path": "teacher", "window": 24, "max_rows": 3, **section}
    return parse_config({"data": {"train": data}, "train": {"steps": 1}})


def rows(resources: Resources, **section: Any) -> Any:
    found = config(**section).data
    assert found is not None
    return build("data", found.train, resources)


def test_a_teachers_text_is_its_own_and_differs_by_split(resources: Resources) -> None:
    with_teacher = replace(resources, teacher=small_model(5, vocab_size=300))
    first, again, other = rows(with_teacher), rows(with_teacher), rows(with_teacher, split="heldout")
    assert first.ids.shape == (3, 24) and first.digest() == again.digest() != other.digest()
    own = build("data", config(path="self").data.train, resources)  # type: ignore[union-attr]
    assert not torch.equal(first.ids, own.ids)
    assert "teacher" in needed_by(config()) and "teacher" not in needed_by(config(path="self"))


def test_without_a_teacher_or_with_a_wider_window_it_is_refused(resources: Resources) -> None:
    with pytest.raises(UsageError, match="no teacher in memory"):
        rows(resources)
    with pytest.raises(UsageError, match="context has 32"):
        rows(replace(resources, teacher=small_model(5, vocab_size=300, max_position_embeddings=32)), window=64)
