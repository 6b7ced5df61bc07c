"""What the strategies that train under a mask have in common: settings, rows, runs, the result."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from apt.checkpoint.lock import locked
from apt.console.errors import BadInputError
from apt.plugins.optional.pruning.contract import PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.masks.weights import Scope
from apt.plugins.optional.pruning.strategies.masked import outcome, wanted_of
from apt.training.config import TrainConfig, parse_config
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows
from apt.training.runner import device

#: Peak learning rates; the embedding's share of Muon's.
_MUON_LR, _MUON_ADAMW_SHARE, _ADAMW_LR = 0.005, 0.3, 1e-3


class TrainingSettings(BaseModel):
    """How a strategy that trains under a mask trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=100, ge=2, description="Optimizer steps.")
    batch_rows: int = Field(default=8, ge=1, description="Calibration rows a step.")
    loss: Literal["distill", "ce"] = Field(
        default="distill", description="distill: the dense model's predictions are learned; ce: the text itself."
    )
    optimizer: Literal["muon", "adamw"] = Field(default="muon", description="The optimizer.")
    lr: float | None = Field(default=None, gt=0.0, description="Peak learning rate; the optimizer's own when absent.")
    scope: Scope = Field(
        default="matrix",
        description="Whether the smallest weights of each matrix go, or those of all matrices together.",
    )
    eval_rows: int = Field(default=8, ge=1, description="Calibration rows that are measured on and never trained on.")

    def training(self, steps: int, seed: int) -> TrainConfig:
        """Return the training config of one run."""
        if self.optimizer == "muon":
            lr = self.lr or _MUON_LR
            optimizer: dict[str, Any] = {"name": "muon", "lr": lr, "adamw_lr": lr * _MUON_ADAMW_SHARE}
        else:
            optimizer = {"name": "adamw", "lr": self.lr or _ADAMW_LR}
        loss = {"name": "distill", "alpha": 1.0} if self.loss == "distill" else {"name": "ce"}
        return parse_config(
            {
                "train": {
                    "loss": loss, "optimizer": optimizer, "scheduler": {"name": "cosine", "warmup_share": 0.05},
                    "steps": steps, "batch_rows": self.batch_rows, "eval_every": max(1, steps // 4),
                    "eval_rows": self.eval_rows, "seed": seed,
                }
            }
        )  # fmt: skip


def check_goal(goal: Goal, strategy: str) -> float:
    """Return the share of the weights that goes.

    :raises UnsupportedError: for a goal of size or speed.
    """
    wanted = wanted_of(goal, strategy)
    return wanted.share if isinstance(wanted, Pattern) else wanted


def training_rows(task: Task, settings: TrainingSettings) -> TokenRows:
    """Return the calibration rows as rows to train on.

    :raises BadInputError: for too few rows, or ids beyond the vocabulary.
    """
    rows = TokenRows(task.rows.ids, task.rows.labels)
    rows.check(int(task.model.config.get_text_config().vocab_size))
    wanted = settings.eval_rows + settings.batch_rows
    if len(rows) < wanted:
        raise BadInputError(
            f"the text {task.rows.source!r} has {len(rows)} rows, too few: {settings.eval_rows} to measure on and "
            f"{settings.batch_rows} of a step are wanted",
            hint="more text, more --tokens, or smaller --set eval_rows and --set batch_rows",
        )
    return rows


def resources_of(task: Task, loss: str) -> Resources:
    """Return what a run needs beside its rows: the dense model where it teaches."""
    if loss != "distill":
        return Resources()
    teacher = task.model
    if teacher.device != device():
        teacher = copy.deepcopy(teacher).to(device())  # the task's own stays where it is
    return Resources(teacher=teacher)


@contextmanager
def state_folder(task: Task) -> Iterator[Path]:
    """Where runs keep their state: the task's own place, held alone, or one that goes with the call.

    :raises UsageError: when another process is at work there.
    """
    if task.work_dir is None:
        with TemporaryDirectory(prefix="apt-prune-") as folder:
            yield Path(folder)
        return
    busy = f"another pruning is at work in {task.work_dir}"
    with locked(task.work_dir, busy=busy, hint="wait for it, or choose another output"):
        yield task.work_dir


def identity(task: Task, settings: BaseModel) -> str:
    """Return the sha256 of all that the outcome depends on: weights, rows, goal, settings, seed."""
    held = hashlib.sha256(f"{task.rows.digest} {task.goal} {settings.model_dump_json()} {task.seed}".encode())
    for name, tensor in task.model.state_dict().items():
        held.update(name.encode())
        held.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return held.hexdigest()


def pruned_of(model: Any, task: Task, plan: str, trials: tuple[PlanTrial, ...]) -> Pruned:
    """Return the result of a strategy that masks, with the zeros counted."""
    return outcome(task, model.to(task.model.device).eval(), plan, trials=trials)


def fresh(task: Task) -> Any:
    """Return a copy of the task's model that may be trained."""
    return copy.deepcopy(task.model).requires_grad_(True)
