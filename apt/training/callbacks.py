"""What the runner does at the events of Trainer's loop."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apt.console.progress import Bar
from apt.events import announce
from apt.training.config import EarlyStopping
from apt.training.saved_states import prune, seal, state_folder
from apt.training.trainer import ContractTrainer


class RunCallback(TrainerCallback):
    """Evaluates at the start and the end, guards steps, moves the bar, announces, seals states, resumes counters."""

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
        self._advance(state.global_step)
        if not state.global_step:
            self.trainer.evaluate()
        elif state.best_global_step:
            # The path that was saved may be of where the run directory was before, or relative to another place.
            state.best_model_checkpoint = str(state_folder(Path(str(args.output_dir)), state.best_global_step))
        self.trainer.meter.begin(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Take the gradients of a step that would spoil the model away."""
        assert self.trainer is not None
        self._step_loss, accepted = self.trainer.judge_step()
        if not accepted:
            for parameter in self.trainer.module.parameters():
                parameter.grad = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        """Ask for a last evaluation when the last step is no multiple of the interval."""
        assert self.trainer is not None
        self._advance(1, f"loss {self._step_loss:.4g}")
        metrics = {"train/loss": self._step_loss, "train/lr": self.trainer.learning_rate()}
        announce("on_training_step", step=state.global_step, metrics=metrics)
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Seal the state once every process has written its part, then remove what nothing needs any more."""
        assert self.trainer is not None
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            run_dir = Path(str(args.output_dir))
            seal(state_folder(run_dir, state.global_step))
            prune(run_dir)
        self.trainer.accelerator.wait_for_everyone()
        self.trainer.meter.resume()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Announce the last figures."""
        last = next((e for e in reversed(state.log_history) if "train/loss" in e), {})
        metrics = {name: value for name, value in last.items() if "/" in name}
        announce("on_training_end", steps=state.global_step, metrics=metrics)

    def _advance(self, steps: int, figure: str = "") -> None:
        """Move the bar; one for all processes."""
        assert self.trainer is not None
        if self.trainer.is_world_process_zero():
            self._bar.advance(steps, figure)


class EarlyStop(TrainerCallback):
    """Ends a run whose evaluations do not improve any more; the log is its memory, so that a resume is exact."""

    def __init__(self, options: EarlyStopping) -> None:
        self._options = options

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        """End the run when the last evaluations did not improve."""
        if has_converged(state.log_history, self._options):
            control.should_training_stop = control.should_save = control.should_log = True
        return control


def has_converged(history: Iterable[Mapping[str, Any]], options: EarlyStopping) -> bool:
    """Whether the last ``patience`` evaluations of a log are no improvement; NaN is none."""
    best, since = float("inf"), 0
    for entry in history:
        if "eval/rows/loss" not in entry:
            continue
        if entry["eval/rows/loss"] < best - options.min_delta:
            best, since = entry["eval/rows/loss"], 0
        else:
            since += 1
    return since >= options.patience
