"""Lottery tickets: train, prune the smallest weights, rewind the others to an early step, and again.

Frankle and Carbin, "The Lottery Ticket Hypothesis" (2019); rewinding to an early step and not to the start is of
Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (2020). Here the start is a trained model:
each round is a fine-tuning on the calibration rows in the shared runner, with a warm-up and a decay of its own.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apt.plugins.optional.pruning.contract import PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.masks.weights import apply, linear_weights, smallest
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
from apt.training.data.rows import TokenRows
from apt.training.result import TrainResult
from apt.training.runner import run

_PLAN: Final = "iterative magnitude pruning with rewinding"


class LotterySettings(TrainingSettings):
    """Options of ``lottery``."""

    rounds: int = Field(default=4, ge=1, description="Times that weights are pruned; each keeps the same share.")
    rewind_step: int = Field(
        default=10, ge=0, description="Step of the first round to which weights are rewound; 0 is the model as it came."
    )

    @model_validator(mode="after")
    def _agree(self) -> "LotterySettings":
        if self.rewind_step >= self.steps:
            raise ValueError("rewind_step comes after the last of the steps")
        return self

    def share(self, number: int, goal: float) -> float:
        """Share of the weights that is gone after so many of the rounds."""
        return goal if number >= self.rounds else 1.0 - (1.0 - goal) ** (number / self.rounds)


class LotteryStrategy(MaskStrategy):
    """Iterative magnitude pruning with rewinding; the last mask is trained once more."""

    name = "lottery"
    plan = _PLAN

    def prune(self, task: Task) -> Pruned:
        """Run the rounds; see :class:`~.contract.Strategy`.

        The trials of the result are the rounds, the last one first: share of the weights that was gone in it, and
        perplexity of the calibration rows set aside at its end.
        """
        task.architecture.check_uniform("pruning")
        settings = LotterySettings(**task.settings)
        rows = training_rows(task, settings)
        with state_folder(task) as root:
            rounds = _Rounds(task, settings, rows, root)
            for number in range(settings.rounds):
                rounds.prune_after(number)
            model = rounds.train(settings.rounds)
        plan = f"{_PLAN}: {settings.rounds} rounds of {settings.steps} steps, rewound to step {settings.rewind_step}"
        return pruned_of(model, task, plan, tuple(reversed(rounds.trials)))


class _Rounds:
    """The rounds of one call and what is kept of them, so that a call that was killed goes on."""

    def __init__(self, task: Task, settings: LotterySettings, rows: TokenRows, root: Path) -> None:
        self._task, self._settings, self._root = task, settings, root
        self._goal = check_goal(task.goal, "lottery")
        self._identity = identity(task, settings)
        self._rows = rows
        self._resources = resources_of(task, settings.loss)
        #: Of the rounds so far: their shares and perplexities.
        self.trials: list[PlanTrial] = []
        self._dead: dict[str, Tensor] = {}
        self._loss = math.nan

    def prune_after(self, number: int) -> None:
        """Train a round and choose what goes, unless an earlier call did both."""
        kept = self._folder(number).with_suffix(".safetensors")
        if kept.exists():
            held = load_file(kept)
            self._remember(number, float(held.pop("loss")))
            self._dead = {name: mask.bool() for name, mask in held.items()}
            return
        model = self.train(number)
        share = self._settings.share(number + 1, self._goal)
        pattern = self._task.goal.pattern
        matrices = linear_weights(model, self._task.architecture)
        dead = smallest(matrices, share, pattern=pattern, scope=self._settings.scope)
        self._dead = {name: mask.cpu() for name, mask in dead.items()}
        _keep(kept, {**self._dead, "loss": torch.tensor(self._loss, dtype=torch.float64)})
        shutil.rmtree(self._folder(number), ignore_errors=True)

    def train(self, number: int) -> Any:
        """Train the rewound weights under the mask of the rounds before; return the model."""
        model = fresh(self._task)
        matrices = linear_weights(model, self._task.architecture)
        rewound = self._root / f"rewind-{self._identity[:16]}.safetensors"
        if number and self._settings.rewind_step:
            model.load_state_dict(load_file(rewound), strict=False)
        watchers: list[TrainerCallback] = []
        if self._dead:
            apply(matrices, self._dead)
            watchers.append(KeepZeros({m.weight: self._dead[m.name] for m in matrices}))
        if not number and self._settings.rewind_step:
            watchers.append(_Remember(model, self._settings.rewind_step, rewound))
        trained = self._run(number, model, tuple(watchers))
        self._remember(number, trained.best_eval_loss)
        return model

    def _run(self, number: int, model: Any, watchers: tuple[TrainerCallback, ...]) -> TrainResult:
        settings = self._settings
        last = number == settings.rounds
        return run(
            settings.training(settings.steps, self._task.seed), model, self._rows,
            run_dir=self._folder(number), identity=f"{self._identity} {number}",
            resources=self._resources, callbacks=watchers,
            # Magnitudes are those of the end of a round; of the last mask, the best weights are kept.
            choose_from=0 if last else settings.steps,
            label=f"round {number + 1} of {settings.rounds + 1}",
        )  # fmt: skip

    def _folder(self, number: int) -> Path:
        return self._root / f"round-{number}-{self._identity[:16]}"

    def _remember(self, number: int, loss: float) -> None:
        self._loss = loss
        share, last = self._settings.share(number, self._goal), number == self._settings.rounds
        name = "the last mask, trained" if last else f"round {number + 1}"
        self.trials.append(PlanTrial(name, (), share, math.exp(min(loss, 700.0)), chosen=last))


class _Remember(TrainerCallback):
    """Keeps the weights of one step.

    A run that goes on from a later step finds them kept; one that goes on from an earlier step comes past it again.
    """

    def __init__(self, model: Any, step: int, path: Path) -> None:
        self._model, self._step, self._path = model, step, path

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Write the weights down."""
        if state.global_step == self._step:
            _keep(self._path, {n: p.detach().cpu() for n, p in self._model.named_parameters()})


def _keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    aside = path.with_name(f".{path.name}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
    aside.replace(path)
