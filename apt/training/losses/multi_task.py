"""Several losses, each on the rows of its parts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from apt.training.components import build
from apt.training.contract import IGNORED, Batch, Loss, LossOut, Metric, Resources, weight_of
from apt.training.sections import LossSection, Section

#: Beside a batch's tensors: the rows of each task, as its loss prepared them.
_TASKS: Final = "tasks"


class TaskSettings(BaseModel):
    """One loss, its weight and its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: LossSection = Field(description="A component of kind loss.")
    weight: float = Field(default=1.0, gt=0.0, description="Of its sum in the whole.")
    parts: list[str] | None = Field(
        default=None, min_length=1, description="Names of the data's parts whose rows it acts on; all when absent."
    )


class MultiTaskOptions(Section):
    """Options of ``multi_task``."""

    name: Literal["multi_task"] = Field(default="multi_task", description="The component.")
    tasks: dict[str, TaskSettings] = Field(min_length=1, description="The losses, each under the name of its metrics.")

    @field_validator("tasks")
    @classmethod
    def _named(cls, value: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        for name in value:
            if not name or "/" in name or "." in name:
                raise ValueError(f"{name!r} is no name of a task: it must not be empty or hold '/' or '.'")
        return value


class MultiTask(nn.Module):
    """The weighted sum of losses: ``Σ weight * loss_sum`` over the batch's tokens.

    The batch weighs what its own rows weigh, also where a loss writes rows of its own; rows of no task count nothing.
    Where a batch has no row of a task, the task's loss sees one row of which nothing counts: in every process the same
    parameters take part in every step.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, options: MultiTaskOptions, resources: Resources) -> None:
        super().__init__()
        self._tasks = options.tasks
        self._losses: dict[str, Loss] = {
            name: build("loss", task.loss, resources) for name, task in options.tasks.items()
        }
        #: Those that have parameters of their own.
        self.losses = nn.ModuleDict(
            {f"of_{n}": loss for n, loss in self._losses.items() if isinstance(loss, nn.Module)}
        )

    def prepare(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> Batch:
        """Deal the rows out to the tasks, and let each loss prepare its own."""
        parts = [facts.get("part", "") for facts in batch["meta"]] if "meta" in batch else [""] * len(batch["labels"])
        dealt: dict[str, Batch] = {}
        taken: set[int] = set()
        for name, task in self._tasks.items():
            rows = [i for i, part in enumerate(parts) if task.parts is None or part in task.parts]
            taken.update(rows)
            dealt[name] = rows_of(batch, rows) if rows else _nothing(batch)
            prepare = getattr(self._losses[name], "prepare", None)
            if prepare is not None:
                dealt[name] = prepare(model, dealt[name], rng=rng, step=step)
        labels = batch["labels"].clone()
        labels[[i for i in range(len(parts)) if i not in taken]] = IGNORED
        return {**batch, "labels": labels, _TASKS: dealt}

    def forward(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        """Return the weighted sum; metrics ``loss/<task>``, and those of each loss with the task in their names."""
        if _TASKS not in batch:
            batch = self.prepare(model, batch, rng=rng, step=step)
        total: Tensor | None = None
        metrics: dict[str, Metric] = {}
        for name, task in self._tasks.items():
            out = self._losses[name](model, batch[_TASKS][name], rng=rng, step=step)
            share = task.weight * out.loss_sum
            total = share if total is None else total + share
            metrics[f"loss/{name}"] = Metric(out.loss_sum.detach(), out.weight)
            metrics |= {within(metric, name): value for metric, value in out.metrics.items()}
        assert total is not None
        return LossOut(total, weight_of(batch), metrics)


def within(metric: str, task: str) -> str:
    """``kd/kl_token`` of the task ``maths`` is ``kd/maths/kl_token``."""
    group, _, rest = metric.partition("/")
    return f"{group}/{task}/{rest}"


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return some rows of a batch as a batch."""
    if len(rows) == len(batch["labels"]):
        return batch
    return {key: _chosen(value, rows) for key, value in batch.items()}


def _chosen(value: Any, rows: Sequence[int]) -> Any:
    if isinstance(value, Tensor):
        return value[torch.tensor(list(rows), device=value.device)]
    return [value[i] for i in rows]


def _nothing(batch: Batch) -> Batch:
    """One row of which nothing counts."""
    row: Mapping[str, Any] = rows_of(batch, [0]) if len(batch["labels"]) > 1 else batch
    return {**row, "labels": torch.full_like(row["labels"], IGNORED)}
