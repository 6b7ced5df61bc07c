"""``transformers.Trainer`` under the project's loss contract."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Trainer

from apt.training.contract import Batch, RowSource, count, weight_of
from apt.training.data.loader import BatchLoader
from apt.training.evaluation import mean_of, score_source
from apt.training.guards import StepGuard
from apt.training.module import LossModule

#: Trainer's names of logged figures, and ours.
NAMES = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/lr"}

#: What :meth:`ContractTrainer.evaluate` returns it as, and what the best checkpoint is chosen by.
EVAL_METRIC = "eval_loss"

#: Beside Trainer's own files in a saved state: where the run stands in its data, and what its guards remember.
PLACE_NAME: Final = "place.json"


class ContractTrainer(Trainer):
    """Divides the loss's sum by the weight of the whole step, so that accumulation equals one big batch.

    Only public methods of Trainer are overridden: :meth:`get_train_dataloader`, :meth:`get_batch_samples`,
    :meth:`compute_loss`, :meth:`evaluate`, :meth:`save_model` and :meth:`log`.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, loader: BatchLoader, evaluation: RowSource, autocast: torch.dtype | None, guard: StepGuard, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self._loader = loader
        self._evaluation = evaluation
        self._autocast_dtype = autocast
        self.guard = guard
        self._generator = torch.Generator()
        self._sums: dict[str, list[Tensor]] = {}
        self._micro = 0
        self._interval_tokens = 0
        self._interval_begun = time.monotonic()
        self._logged_step = 0
        self.tokens = 0
        self._step_loss = torch.zeros((), dtype=torch.float64)

    def get_train_dataloader(self) -> Any:
        """Return the loader: it knows each process's share and where the run stands, so that nothing is skipped."""
        return self._loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of one step, let the loss prepare them, and weigh them together."""
        self._micro, self._step_loss = 0, torch.zeros((), dtype=torch.float64, device=device)
        module = self.module
        samples = []
        for micro in range(num_batches):
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in next(epoch_iterator).items()}
            with self.autocast():
                samples.append(module.prepare(batch, self._rng(micro, purpose=1), self.state.global_step))
        weights = torch.stack([torch.stack([weight_of(s), count(s).double()]) for s in samples]).sum(0)
        weight, tokens = self.accelerator.reduce(weights, "sum")
        self._interval_tokens += int(tokens)
        self.tokens += int(tokens)
        return samples, weight

    @property
    def module(self) -> LossModule:
        """Model and loss, without what is wrapped around them."""
        module: LossModule = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return module

    def _rng(self, micro: int, purpose: int = 0) -> torch.Generator:
        """Random choices of one micro-batch depend on seed, step and place only."""
        place = micro * self.accelerator.num_processes + self.accelerator.process_index
        chosen = f"{self.args.seed} {self.state.global_step} {place} {purpose}"
        return self._generator.manual_seed(int.from_bytes(hashlib.sha256(chosen.encode()).digest()[:7]))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return one micro-batch's share of the step's mean loss."""
        loss_sum, weight = self._loss_of(model, inputs)
        whole = num_items_in_batch if num_items_in_batch is not None else weight
        # Every process holds a share of the sum, and DDP averages over them.
        loss = loss_sum / whole.clamp(min=1).to(loss_sum.dtype) * self.accelerator.num_processes
        self._step_loss += loss.detach().double() / self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def step_loss(self) -> float:
        """Return the mean loss per token of the step that was made last, over all processes; all have to call it."""
        return float(self.accelerator.reduce(self._step_loss, "sum"))

    def _loss_of(self, model: Any, inputs: Batch) -> tuple[Tensor, Tensor]:
        rng = self._rng(self._micro)
        self._micro += 1
        with self.autocast():
            loss_sum = model(inputs, rng, self.state.global_step)
        out = self.module.out
        assert out is not None
        for name, metric in out.metrics.items():
            zeros = [torch.zeros((), dtype=torch.float64, device=loss_sum.device) for _ in range(2)]
            held = self._sums.setdefault(name, zeros)
            held[0] += metric.sum.detach().double()
            held[1] += metric.weight.double() if metric.aggregate == "mean" else 0.0
        return loss_sum, out.weight

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to the run's dtype; nothing in full precision."""
        dtype = self._autocast_dtype
        with torch.autocast(self.args.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Score the evaluation rows: cross-entropy in nats per token with its interval, whatever is trained."""
        model: Any = self.module.model
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.autocast():
            sums = score_source(
                model, self._evaluation, batch_rows=self.args.per_device_train_batch_size, device=self.args.device,
                process=self.accelerator.process_index, processes=self.accelerator.num_processes,
            )  # fmt: skip
        model.train(was_training)
        found = mean_of(self.accelerator.reduce(sums.to(self.args.device), "sum").cpu())
        self.log(
            {
                "eval/rows/loss": found.value,
                "eval/rows/loss_low": found.low,
                "eval/rows/loss_high": found.high,
                "train/tokens": self.tokens,
            }
        )
        metrics = {EVAL_METRIC: found.value}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the run changed, and where it stands in its data."""
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.module.trained_state(), folder / "model.safetensors", metadata={"format": "pt"})
        place = {"data": self._loader.state_dict(), "guard": self.guard.state_dict()}
        (folder / PLACE_NAME).write_text(json.dumps(place), encoding="utf-8")

    def resume_place(self, folder: Path) -> None:
        """Go on from where a saved state stood in its data."""
        place = json.loads((folder / PLACE_NAME).read_text(encoding="utf-8"))
        self._loader.load_state_dict(place["data"])
        self.guard.load_state_dict(place["guard"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log under the fixed names; with the training loss go the loss's own metrics and the speed."""
        renamed = {NAMES.get(key, key): value for key, value in logs.items()}
        if "loss" in logs:
            renamed |= self._interval()
        super().log(renamed, start_time)
        # Trainer's epoch is of its own loop, which begins anew in a resumed run.
        self.state.log_history[-1].pop("epoch", None)

    def learning_rate(self) -> float:
        """The first parameter group's rate for the next step."""
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    def _interval(self) -> dict[str, float]:
        """Figures since the last training log; starts a new interval."""
        seconds = max(time.monotonic() - self._interval_begun, 1e-9)
        steps = max(1, self.state.global_step - self._logged_step)
        sums = self._reduced()
        figures: dict[str, float] = {name: s / (w or 1.0) for name, (s, w) in sums.items()}
        figures["train/tokens"] = self.tokens
        figures["perf/tokens_per_s"] = self._interval_tokens / seconds
        figures["perf/step_s"] = seconds / steps
        self._sums, self._interval_tokens = {}, 0
        self._interval_begun, self._logged_step = time.monotonic(), self.state.global_step
        return figures

    def _reduced(self) -> Mapping[str, tuple[float, float]]:
        """The metrics' sums and weights over all processes."""
        names = sorted(self._sums)
        if not names:
            return {}
        held = torch.stack([torch.stack(self._sums[n]) for n in names]).to(self.args.device)
        whole = self.accelerator.reduce(held, "sum").cpu()
        return {name: (float(whole[i, 0]), float(whole[i, 1])) for i, name in enumerate(names)}

    def restore_counters(self) -> None:
        """Take the token count from a resumed log."""
        self._logged_step = self.state.global_step
        for entry in self.state.log_history:
            self.tokens = int(entry.get("train/tokens", self.tokens))
