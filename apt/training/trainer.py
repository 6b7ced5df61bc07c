"""``transformers.Trainer`` under the project's loss contract."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apt.console.errors import AptError
from apt.console.progress import Bar
from apt.events import announce
from apt.training.contract import Batch, Loss, LossOut, count
from apt.training.data import TokenRows
from apt.training.losses.linear import Head, Terms, last_hidden, linear_loss, targets_of

#: Trainer's names of logged figures, and ours.
NAMES = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/lr"}

#: What :meth:`ContractTrainer.evaluate` returns it as, and what the best checkpoint is chosen by.
EVAL_METRIC = "eval_loss"


class ContractTrainer(Trainer):
    """Divides the loss's sum by the weight of the whole step, so that accumulation equals one big batch.

    Only public methods of Trainer are overridden: :meth:`get_batch_samples`, :meth:`compute_loss`,
    :meth:`evaluate` and :meth:`log`.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, evaluation: TokenRows, autocast: torch.dtype | None, **rest: Any) -> None:
        super().__init__(**rest)
        self._loss = loss
        self._evaluation = evaluation
        self._autocast_dtype = autocast
        self._generator = torch.Generator()
        self._sums: dict[str, list[Tensor]] = {}
        self._micro = 0
        self._interval_tokens = 0
        self._interval_begun = time.monotonic()
        self._logged_step = 0
        self.tokens = 0
        #: Mean loss per token of the step that is being made or was made last.
        self.step_loss = 0.0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of one step and the number of tokens that they count together."""
        samples = []
        for _ in range(num_batches):
            try:
                samples.append(next(epoch_iterator))
            except StopIteration:
                break
        self._micro, self.step_loss = 0, 0.0
        weight = sum((count(s) for s in samples), torch.zeros((), dtype=torch.long)).to(device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight).sum()
        self._interval_tokens += int(weight)
        self.tokens += int(weight)
        return samples, weight

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return one micro-batch's share of the step's mean loss."""
        out = self._checked_loss(model, inputs)
        for name, metric in out.metrics.items():
            held = self._sums.setdefault(name, [torch.zeros((), dtype=torch.float64) for _ in range(2)])
            held[0] += metric.sum.detach().double().cpu()
            held[1] += metric.weight.double().cpu() if metric.aggregate == "mean" else 0.0
        weight = num_items_in_batch if num_items_in_batch is not None else out.weight
        # Every process holds a share of the sum, and DDP averages over them.
        loss = out.loss_sum / weight.clamp(min=1) * self.accelerator.num_processes
        self.step_loss += float(loss.detach())
        return (loss, None) if return_outputs else loss

    def _checked_loss(self, model: Any, inputs: Batch) -> LossOut:
        step = self.state.global_step
        self._generator.manual_seed((self.args.seed << 32) + (step << 8) + self._micro % 256)
        self._micro += 1
        with self.autocast():
            out = self._loss(model, inputs, rng=self._generator, step=step)
        if not math.isfinite(float(out.loss_sum.detach())):
            raise AptError(f"the loss is not a finite number at step {step + 1}", hint="lower the learning rate")
        return out

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to the run's dtype; nothing in full precision."""
        dtype = self._autocast_dtype
        with torch.autocast(self.args.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Score the evaluation rows: cross-entropy in nats per token, whatever the loss that is trained."""
        model: Any = self.model
        was_training = model.training
        model.eval()
        total, weight = 0.0, 0
        size = self.args.per_device_train_batch_size
        with torch.no_grad(), self.autocast():
            for begin in range(0, len(self._evaluation), size):
                part = slice(begin, begin + size)
                batch = {
                    "input_ids": self._evaluation.ids[part].to(self.args.device),
                    "labels": self._evaluation.labels[part].to(self.args.device),
                }
                _, sums = linear_loss(last_hidden(model, batch), Head.of(model), targets_of(batch), Terms())
                total += float(sums.cross_entropy)
                weight += int(count(batch))
        model.train(was_training)
        value = total / max(1, weight)
        self.log({"eval/rows/loss": value, "train/tokens": self.tokens})
        metrics = {EVAL_METRIC: value}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log under the fixed names; with the training loss go the loss's own metrics and the speed."""
        renamed = {NAMES.get(key, key): value for key, value in logs.items()}
        if "loss" in logs:
            renamed |= self._interval()
        super().log(renamed, start_time)

    def learning_rate(self) -> float:
        """The first parameter group's rate for the next step."""
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    def _interval(self) -> dict[str, float]:
        """Figures since the last training log; starts a new interval."""
        seconds = max(time.monotonic() - self._interval_begun, 1e-9)
        steps = max(1, self.state.global_step - self._logged_step)
        figures = {name: float(s) / (float(w) or 1.0) for name, (s, w) in self._sums.items()}
        figures["train/tokens"] = self.tokens
        figures["perf/tokens_per_s"] = self._interval_tokens / seconds
        figures["perf/step_s"] = seconds / steps
        self._sums, self._interval_tokens = {}, 0
        self._interval_begun, self._logged_step = time.monotonic(), self.state.global_step
        return figures

    def restore_counters(self) -> None:
        """Take the token count from a resumed log."""
        self._logged_step = self.state.global_step
        for entry in self.state.log_history:
            self.tokens = int(entry.get("train/tokens", self.tokens))


class RunCallback(TrainerCallback):
    """Evaluates at the start and the end, moves the bar, announces, and makes a resumed run count on."""

    def __init__(self, bar: Bar, config: Mapping[str, Any]) -> None:
        self._bar = bar
        self._config = config
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

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> TrainerControl:
        """Ask for a last evaluation when the last step is no multiple of the interval."""
        assert self.trainer is not None
        self._bar.advance(1)
        metrics = {"train/loss": self.trainer.step_loss, "train/lr": self.trainer.learning_rate()}
        announce("on_training_step", step=state.global_step, metrics=metrics)
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = True
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Announce the last figures."""
        last = next((e for e in reversed(state.log_history) if "train/loss" in e), {})
        metrics = {name: value for name, value in last.items() if "/" in name}
        announce("on_training_end", steps=state.global_step, metrics=metrics)
