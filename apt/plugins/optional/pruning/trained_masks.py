"""What the strategies that train under a mask have in common: the matrices, magnitude masks, runs, the result."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from apt.checkpoint.architecture import Architecture
from apt.console.errors import BadInputError, UnsupportedError
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.strategies.base import LayerCut, PlanPreview, PlanTrial, Pruned, Task
from apt.training.config import TrainConfig, parse_config
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows
from apt.training.runner import device

#: Whether the smallest weights of each matrix go, or those of all matrices together.
Scope = Literal["matrix", "global"]

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


@dataclass(frozen=True)
class Matrix:
    """A linear matrix of the decoder.

    :param transposed: it is stored [inputs, outputs] (GPT-2's Conv1D).
    """

    name: str
    layer: int
    weight: Tensor
    transposed: bool

    def turned(self, values: Tensor) -> Tensor:
        """Return values of the matrix's shape as [outputs, inputs], or such values as the matrix stores them."""
        return values.T if self.transposed else values


def matrices_of(model: Any, architecture: Architecture) -> list[Matrix]:
    """Return the decoder's linear matrices in the order of the model."""
    found = []
    for name, weight in model.named_parameters():
        layer = architecture.layer_of(name)
        if layer is None or weight.ndim != 2 or architecture.component_of(name) not in ("attention", "mlp"):
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        found.append(Matrix(name, layer, weight, type(module).__name__ == "Conv1D"))
    return found


def check_goal(goal: Goal, strategy: str) -> float:
    """Return the share of the weights that goes.

    :raises UnsupportedError: for a goal of size or speed.
    """
    if goal.share is None:
        raise UnsupportedError(f"the strategy {strategy} cannot give {goal}", hint="it takes --ratio or --pattern")
    return goal.share


def mask_preview(checkpoint: Any, goal: Goal, strategy: str, plan: str) -> list[PlanPreview]:
    """Return the one plan of a strategy that masks; refuse what :func:`check_goal` and the shapes refuse."""
    architecture: Architecture = checkpoint.architecture
    architecture.check_uniform("pruning")
    share = check_goal(goal, strategy)
    if goal.pattern is not None:
        conv1d = architecture.model_type == "gpt2"
        for name, tensor in checkpoint.tensors.items():
            masked = architecture.layer_of(name) is not None and len(tensor.shape) == 2
            if masked and architecture.component_of(name) in ("attention", "mlp"):
                check_groups(goal.pattern, tensor.shape[0 if conv1d else 1])
    return [PlanPreview(plan, share, checkpoint.parameters, checkpoint.size_bytes)]


def check_groups(pattern: Pattern, inputs: int) -> None:
    """Refuse a pattern whose groups do not tile the inputs.

    :raises UnsupportedError: naming both sizes.
    """
    if inputs % pattern.group:
        raise UnsupportedError(
            f"{pattern} does not fit a matrix of {inputs} inputs", hint=f"{inputs} is no multiple of {pattern.group}"
        )


@torch.no_grad()
def smallest(matrices: Sequence[Matrix], share: float, *, pattern: Pattern | None, scope: Scope) -> dict[str, Tensor]:
    """Return the weights of least magnitude by matrix: bool, true where one goes; of equals the first.

    Weights that are zero already are among them, as long as they are not more than ``share``.

    :param pattern: only weights that it does not keep may go; at its own share all of them do.
    """
    scores = {m.name: _scores(m, pattern) for m in matrices}
    if scope == "global" and pattern is None:
        whole = torch.cat([s.flatten() for s in scores.values()])
        gone = _lowest(whole, round(share * whole.numel()))
        parts = torch.split(gone, [s.numel() for s in scores.values()])
        return {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}
    return {name: _lowest(s.flatten(), round(share * s.numel())).view_as(s) for name, s in scores.items()}


def _scores(matrix: Matrix, pattern: Pattern | None) -> Tensor:
    """Magnitudes; infinite for what the pattern keeps."""
    scores = matrix.weight.detach().abs().float()
    if pattern is None:
        return scores
    turned = matrix.turned(scores)
    groups = turned.reshape(-1, pattern.group)
    ranks = groups.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    groups = groups.masked_fill(ranks >= pattern.group - pattern.kept, torch.inf)
    return matrix.turned(groups.view(turned.shape)).contiguous()


def _lowest(scores: Tensor, count: int) -> Tensor:
    gone = torch.zeros_like(scores, dtype=torch.bool)
    gone[scores.argsort(stable=True)[:count]] = True
    return gone


@torch.no_grad()
def apply(matrices: Sequence[Matrix], dead: Mapping[str, Tensor]) -> None:
    """Set the weights of a mask to zero."""
    for matrix in matrices:
        matrix.weight.masked_fill_(dead[matrix.name], 0.0)


def training_rows(task: Task) -> TokenRows:
    """Return the calibration rows as rows to train on.

    :raises BadInputError: for too few rows, or ids beyond the vocabulary.
    """
    rows = TokenRows(task.rows.ids, task.rows.labels)
    rows.check(int(task.model.config.get_text_config().vocab_size))
    if len(rows) < 2:
        raise BadInputError(f"the text {task.rows.source!r} has {len(rows)} row: too few to train and measure on")
    return rows


def resources_of(task: Task, loss: str) -> Resources:
    """Return what a run needs beside its rows: the dense model where it teaches."""
    if loss != "distill":
        return Resources()
    teacher = task.model
    if teacher.device != device():
        teacher = copy.deepcopy(teacher).to(device())  # the task's own stays where it is
    return Resources(teacher=teacher)


def state_folder(task: Task) -> AbstractContextManager[str]:
    """Where runs keep their state: the task's own place, or one that goes with the call."""
    if task.work_dir is None:
        return TemporaryDirectory(prefix="apt-prune-")
    task.work_dir.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(task.work_dir))


def identity(task: Task, settings: BaseModel) -> str:
    """Return the sha256 of all that the outcome depends on: weights, rows, goal, settings, seed."""
    held = hashlib.sha256(f"{task.rows.digest} {task.goal} {settings.model_dump_json()} {task.seed}".encode())
    for name, tensor in task.model.state_dict().items():
        held.update(name.encode())
        held.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return held.hexdigest()


def pruned_of(model: Any, task: Task, plan: str, trials: tuple[PlanTrial, ...]) -> Pruned:
    """Return the result of a strategy that masks, with the zeros counted."""
    model = model.to(task.model.device).eval()
    zeros: dict[int, int] = {}
    totals: dict[int, int] = {}
    for matrix in matrices_of(model, task.architecture):
        zeros[matrix.layer] = zeros.get(matrix.layer, 0) + int((matrix.weight == 0).sum())
        totals[matrix.layer] = totals.get(matrix.layer, 0) + matrix.weight.numel()
    d = task.architecture.dimensions(model.config.to_dict())
    sizes = (d.heads, d.heads, d.kv_heads, d.kv_heads, d.ff, d.ff)
    cuts = tuple(LayerCut(i, i, *sizes, removed_share=zeros[i] / totals[i]) for i in sorted(totals))
    share = sum(zeros.values()) / max(1, sum(totals.values()))
    return Pruned(model, share, smaller=False, plan=plan, layers=cuts, trials=trials)


def fresh(task: Task) -> Any:
    """Return a copy of the task's model that may be trained."""
    return copy.deepcopy(task.model).requires_grad_(True)
