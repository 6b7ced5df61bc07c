"""A data component that counts, and what a run of ``apt.training.job`` needs beside it."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows
from apt.training.job import TrainOptions
from apt.training.sections import Section


class CountingOptions(Section):
    name: Literal["counting"] = Field(default="counting", description="The component.")
    rows: int = Field(default=24, ge=1, description="Rows.")
    ids: int = Field(default=200, ge=2, description="Counts up to this id.")
    seed: int = Field(default=0, ge=0, description="Where the rows begin.")


def counting(options: CountingOptions, resources: Resources) -> TokenRows:
    """Rows that can be learned: each counts up from a random start in small steps."""
    generator = torch.Generator().manual_seed(options.seed)
    start = torch.randint(options.ids, (options.rows, 1), generator=generator)
    stride = torch.randint(1, 4, (options.rows, 1), generator=generator)
    ids = (start + stride * torch.arange(16)) % options.ids
    labels = ids.clone()
    labels[:, 0] = -100
    return TokenRows(ids, labels)


counting.needs = frozenset({"tokenizer"})  # type: ignore[attr-defined]

COUNTING = Component("data", "counting", f"{__name__}:counting", f"{__name__}:CountingOptions", "rows that count up")


def registry(*more: Component) -> Registry:
    return Registry([*CORE_COMPONENTS, COUNTING, *more])


def small_run(**train: Any) -> dict[str, Any]:
    settings = {"steps": 4, "batch_rows": 4, "eval_every": 2, "eval_rows": 4, "precision": "fp32"}
    rate = {"name": "adamw", "lr": 0.003}
    return {"data": {"train": {"name": "counting"}}, "train": {**settings, "optimizer": rate, **train}}


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")
    return path


def options(tmp_path: Path, values: dict[str, Any], **given: Any) -> TrainOptions:
    config = write_config(tmp_path / "run.yaml", values)
    return TrainOptions(**{"config": config, "output": tmp_path / "out", **given})
