"""Sparsity that grows while the model is trained, on the cubic schedule of Zhu and Gupta (2017).

"To prune, or not to prune": many weights go early, while there are many to spare, and few towards the end. Optionally
some of the weights that are left are exchanged at each step of the schedule for those among the zeros whose gradient is
largest (Evci et al., "Rigging the Lottery", 2020).
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from pydantic import Field
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.contract import PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.masks.weights import LinearWeight, linear_weights, smallest
from apt.plugins.optional.pruning.masks.zeros import KeepZeros
from apt.plugins.optional.pruning.strategies.masked import MaskStrategy
from apt.plugins.optional.pruning.strategies.trained import (
    TrainingSettings,
    check_goal,
    fresh,
    identity,
    pruned_of,
    resources_of,
    state_folder,
    training_rows,
)
from apt.training.runner import run

_PLAN: Final = "magnitude pruning on a cubic schedule while training"


class DynamicSettings(TrainingSettings):
    """Options of ``dynamic``."""

    steps: int = Field(default=400, ge=2, description="Optimizer steps.")
    ramp_share: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="Share of the steps in which the sparsity rises; then it is held."
    )
    every: int = Field(default=10, ge=1, description="Steps between two choices of the weights that go.")
    regrow: float = Field(
        default=0.0, ge=0.0, lt=1.0,
        description="Share of the weights left that is exchanged at first, by gradient; it falls to 0 over the rise.",
    )  # fmt: skip

    @property
    def last_change(self) -> int:
        """The step, counted from 0, before which the mask changes for the last time."""
        return max(0, min(self.steps - 1, round(self.ramp_share * self.steps) - 1))

    def changes(self, step: int) -> bool:
        """Whether the mask changes before a step, counted from 0."""
        return step == self.last_change or (step < self.last_change and step % self.every == 0)

    def share(self, step: int, goal: float) -> float:
        """Share of the weights that is gone after a change: ``goal (1 - (1 - progress)^3)``."""
        progress = min(1.0, (step + 1) / (self.last_change + 1))
        return goal * (1.0 - (1.0 - progress) ** 3) if progress < 1.0 else goal

    def exchanged(self, step: int) -> float:
        """Share of the weights left that is exchanged at a change; a half cosine, 0 at the last one."""
        return 0.5 * self.regrow * (1.0 + math.cos(math.pi * min(1.0, (step + 1) / (self.last_change + 1))))


class DynamicStrategy(MaskStrategy):
    """Gradual magnitude pruning during training, exact at its end."""

    name = "dynamic"
    plan = _PLAN

    def prune(self, task: Task) -> Pruned:
        """Train while weights go; see :class:`~.contract.Strategy`."""
        task.architecture.check_uniform("pruning")
        settings = DynamicSettings(**task.settings)
        goal = check_goal(task.goal, "dynamic")
        if settings.regrow and task.goal.pattern is not None:
            raise UnsupportedError(f"weights cannot grow again under {task.goal}", hint="--ratio, or regrow=0")
        model, key, rows = fresh(task), identity(task, settings), training_rows(task, settings)
        ramp = Ramp(linear_weights(model, task.architecture), settings, task.goal, goal)
        with state_folder(task) as root:
            trained = run(
                settings.training(settings.steps, task.seed), model, rows,
                run_dir=root / f"dynamic-{key[:16]}", identity=key, resources=resources_of(task, settings.loss),
                callbacks=(ramp,), choose_from=settings.last_change + 1, label="training while pruning",
            )  # fmt: skip
        told = PlanTrial(_PLAN, (), goal, math.exp(min(trained.best_eval_loss, 700.0)), chosen=True)
        plan = f"{_PLAN}: {settings.steps} steps, the mask is whole at step {settings.last_change + 1}"
        return pruned_of(model, task, plan, (told,))


class Ramp(KeepZeros):
    """Lets weights go on a schedule.

    A mask is chosen right before the optimizer's step, so that what grew again is no zero any more when the step is
    done: the weights alone tell a resumed run which of them are held.
    """

    def __init__(self, matrices: Sequence[LinearWeight], settings: DynamicSettings, goal: Goal, share: float) -> None:
        super().__init__({})
        self._matrices, self._settings = matrices, settings
        self._pattern, self._share = goal.pattern, share

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Read the mask off the weights of a run that goes on."""
        if state.global_step:
            self._dead = [(m.weight, m.weight.detach() == 0) for m in self._matrices]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Choose the mask anew where the schedule says so, then hold it."""
        step = state.global_step
        skipped = all(m.weight.grad is None for m in self._matrices)  # by a guard: then nothing would grow
        if self._settings.changes(step) and not (skipped and step != self._settings.last_change):
            self._change(step)
        super().on_pre_optimizer_step(args, state, control, **rest)

    def _change(self, step: int) -> None:
        settings = self._settings
        share = settings.share(step, self._share)
        dead = smallest(self._matrices, share, pattern=self._pattern, scope=settings.scope)
        exchanged = settings.exchanged(step)
        self._dead = []
        for matrix in self._matrices:
            gone = dead[matrix.name]
            if exchanged > 0.0 and matrix.weight.grad is not None:
                gone = _exchange(matrix.weight.detach(), matrix.weight.grad, gone, exchanged)
            self._dead.append((matrix.weight, gone))


@torch.no_grad()
def _exchange(weight: Tensor, gradient: Tensor, gone: Tensor, share: float) -> Tensor:
    """Let as many zeros grow as weights go beside those of the mask: ``share`` of what is left, if there are so many.

    :returns: another mask of the same count.
    """
    count = min(round(share * int((~gone).sum())), int(gone.sum()))
    if not count:
        return gone
    result = gone.flatten().clone()
    grown = gradient.abs().flatten().masked_fill(~result, -1.0).argsort(descending=True, stable=True)[:count]
    dropped = weight.abs().flatten().masked_fill(result, torch.inf).argsort(stable=True)[:count]
    result[grown] = False
    result[dropped] = True
    return result.view_as(gone)
