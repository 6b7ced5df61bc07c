"""What the runner does at the events of Trainer's loop."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apt.console.progress import Bar
from apt.events import announce
from apt.training.config import EarlyStopping
from apt.training.trainer import ContractTrainer


class RunCallback(TrainerCallback):
    """Evaluates at the start and the end, guards steps, moves the bar, announces, makes a resumed run count on."""

    def __init__(self, bar: Bar, config: Mapping[str, Any]) -> None:
        self._bar = bar
        self._config = config
        self._step_loss = 0.0
        self.trainer: ContractTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Score the model as it came; or, in a resumed run, take up its counters."""
        assert self.trainer is not None
        announce("on_training_start", steps=state.max_steps, options=self._config)
        self._bar.advance(state.global_step)
        if state.global_step:
            self.trainer.restore_counters()
        else:
            self.trainer.evaluate()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Take the gradients of a step that would spoil the model away."""
        trainer = self.trainer
        assert trainer is not None
        self._step_loss = trainer.step_loss()
        parameters = list(trainer.module.parameters())
        if not trainer.guard.check(state.global_step + 1, self._step_loss, parameters):
            for parameter in parameters:
                parameter.grad = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        """Ask for a last evaluation when the last step is no multiple of the interval."""
        assert self.trainer is not None
        self._bar.advance(1)
        metrics = {"train/loss": self._step_loss, "train/lr": self.trainer.learning_rate()}
        announce("on_training_step", step=state.global_step, metrics=metrics)
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = True
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Announce the last figures."""
        last = next((e for e in reversed(state.log_history) if "train/loss" in e), {})
        metrics = {name: value for name, value in last.items() if "/" in name}
        announce("on_training_end", steps=state.global_step, metrics=metrics)


class EarlyStop(TrainerCallback):
    """Ends a run whose evaluations do not improve any more; the log is its memory, so that a resume is exact."""

    def __init__(self, options: EarlyStopping) -> None:
        self._options = options

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        """Count the evaluations since the last improvement."""
        best, since = float("inf"), 0
        for entry in state.log_history:
            if "eval/rows/loss" not in entry:
                continue
            if entry["eval/rows/loss"] < best - self._options.min_delta:
                best, since = entry["eval/rows/loss"], 0
            else:
                since += 1
        if since >= self._options.patience:
            control.should_training_stop = control.should_save = control.should_log = True
        return control
