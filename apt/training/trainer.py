"""``transformers.Trainer`` under the project's loss contract."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Trainer

from apt.training.contract import Batch, RowSource, count, divisor_of, weight_of
from apt.training.data.loader import BatchLoader
from apt.training.data.rows import on_device
from apt.training.evaluation import mean_of, score_source
from apt.training.forward import evaluating
from apt.training.guards import StepGuard
from apt.training.module import LossModule
from apt.training.performance import FlopCount, Meter
from apt.training.run_directory import RECORD_NAME
from apt.training.samplers.orders import seed_of
from apt.training.sharding import WholeState, whole

#: Trainer's names of logged figures, and ours.
NAMES = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/lr"}

#: What :meth:`ContractTrainer.evaluate` returns it as, and what the best checkpoint is chosen by.
EVAL_METRIC = "eval_loss"

#: Beside Trainer's own files in a saved state: where the run stands in its data, what its guards remember, and what
#: was counted since the last log.
PLACE_NAME: Final = "place.json"


class ContractTrainer(Trainer):
    """Divides the loss's sum by the weight of the whole step, so that accumulation equals one big batch.

    Only public methods of Trainer are overridden: :meth:`get_train_dataloader`, :meth:`get_batch_samples`,
    :meth:`compute_loss`, :meth:`evaluate`, :meth:`save_model` and :meth:`log`.

    :param record: what the run was made with; written into every saved state.
    :param whole_states: what gathers the optimizer's state, where parameters are sharded.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, loader: BatchLoader, evaluation: RowSource, autocast: torch.dtype | None, guard: StepGuard,
        record: Mapping[str, Any], whole_states: Sequence[WholeState] = (), **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__(**rest)
        self._loader = loader
        self._evaluation = evaluation
        self._autocast_dtype = autocast
        self._record = record
        self._whole_states = whole_states
        self.guard = guard
        #: The step from which on evaluations are candidates for the best weights.
        self.choose_from = 0
        self._generator = torch.Generator()
        self._micro = 0
        device = self.args.device
        flops = FlopCount.of(self.module.model)
        self.meter = Meter(device, autocast or torch.float32, flops, self.accelerator.num_processes)
        # Of the steps that were taken since the last log: their losses, and sum and weight of the loss's own metrics.
        self._losses: list[float] = []
        self._sums: dict[str, list[Tensor]] = {}
        # Names of the metrics that are sums and no means.
        self._bare: set[str] = set()
        # Of the step that is being made.
        self._step_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._step_sums: dict[str, list[Tensor]] = {}
        self._gradient_norm = torch.zeros((), dtype=torch.float64, device=device)
        self._clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = self._clip_and_remember

    def _clip_and_remember(self, *arguments: Any, **options: Any) -> Any:
        """Accelerate's own; the norm is kept for the guard, which would else have to read all gradients again."""
        norm = self._clip(*arguments, **options)
        norm = whole(torch.as_tensor(norm))
        self._gradient_norm = norm.double()
        return norm

    def get_train_dataloader(self) -> Any:
        """Return the loader: it knows each process's share and where the run stands, so that nothing is skipped."""
        return self._loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of one step, let the loss prepare them, and weigh them together."""
        self._micro, self._step_sums = 0, {}
        self._step_loss = torch.zeros((), dtype=torch.float64, device=device)
        module = self.module
        samples = []
        for micro in range(num_batches):
            batch = on_device(next(epoch_iterator), device)
            with self.autocast():
                samples.append(module.prepare(batch, self._rng(micro, purpose=1), self.state.global_step))
        weights = torch.stack([torch.stack([weight_of(s), count(s).double()]) for s in samples]).sum(0)
        weight, tokens = self.accelerator.reduce(weights, "sum")
        self.meter.add(tokens, [tuple(s["input_ids"].shape) for s in samples])
        return samples, weight

    @property
    def module(self) -> LossModule:
        """Model and loss, without what is wrapped around them."""
        module: LossModule = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return module

    def _rng(self, micro: int, purpose: int = 0) -> torch.Generator:
        """Random choices of one micro-batch depend on seed, step and place only."""
        place = micro * self.accelerator.num_processes + self.accelerator.process_index
        return self._generator.manual_seed(seed_of(self.args.seed, self.state.global_step, place, purpose))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return one micro-batch's share of the step's mean loss."""
        loss_sum, weight = self._loss_of(model, inputs)
        whole = num_items_in_batch if num_items_in_batch is not None else weight
        # Every process holds a share of the sum, and DDP and FSDP2 average over them.
        loss = loss_sum / divisor_of(whole).to(loss_sum.dtype) * self.accelerator.num_processes
        self._step_loss += loss.detach().double() / self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _loss_of(self, model: Any, inputs: Batch) -> tuple[Tensor, Tensor]:
        rng = self._rng(self._micro)
        self._micro += 1
        with self.autocast():
            loss_sum = model(inputs, rng, self.state.global_step)
        out = self.module.out
        assert out is not None
        for name, metric in out.metrics.items():
            if metric.aggregate == "sum":
                self._bare.add(name)
            # A loss may count on the CPU (rewards of texts) what others count on the device.
            _add(self._step_sums, name, [value.detach().to(self.args.device) for value in (metric.sum, metric.weight)])
        return loss_sum, out.weight

    def judge_step(self) -> tuple[float, bool]:
        """Return the mean loss per token of the step over all processes, and whether the optimizer may take it.

        Every process has to call it, when the step's gradients are there. A step that may not be taken leaves no trace
        in the figures that are logged.

        :raises AptError: when the run is to be stopped.
        """
        # Averaged over the processes, a norm stays what it is everywhere, or is no finite number anywhere.
        told = torch.stack([self._step_loss, self._gradient_norm / self.accelerator.num_processes])
        loss, norm = self.accelerator.reduce(told, "sum").tolist()
        accepted = self.guard.check(self.state.global_step + 1, loss, norm)
        if accepted:
            self._losses.append(loss)
            for name, pair in self._step_sums.items():
                _add(self._sums, name, pair)
        return loss, accepted

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to the run's dtype; nothing in full precision."""
        dtype = self._autocast_dtype
        with torch.autocast(self.args.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Score the evaluation rows: cross-entropy in nats per token with its interval, whatever is trained."""
        self.meter.pause()
        module = self.module
        with evaluating(module.model), torch.no_grad(), self.autocast():
            sums = score_source(
                module, self._evaluation, batch_rows=self.args.per_device_train_batch_size, device=self.args.device,
                process=self.accelerator.process_index, processes=self.accelerator.num_processes,
                by=lambda module, batch: module.score(batch),
            )  # fmt: skip
        found = mean_of(self.accelerator.reduce(sums.to(self.args.device), "sum").cpu())
        self.log(
            {
                "eval/rows/loss": found.value,
                "eval/rows/loss_low": found.low,
                "eval/rows/loss_high": found.high,
                "train/tokens": self.meter.read_tokens(),
            }
        )
        # What is no number below infinity is never the best.
        metrics = {EVAL_METRIC: found.value if self.state.global_step >= self.choose_from else math.inf}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.resume()
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the run changed, where it stands, and what it was made with."""
        from safetensors.torch import save_file

        self.meter.pause()  # until the state is sealed
        folder = Path(output_dir or str(self.args.output_dir))
        keep = bool(self.args.should_save)
        state, interval = self.module.trained_state(keep=keep), self._reduced()
        for each in self._whole_states:
            each.gather(keep=keep)
        if not keep:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        place = {
            "data": self._loader.state_dict(),
            "guard": self.guard.state_dict(),
            "tokens": self.meter.read_tokens(),
            "losses": self._losses,
            "sums": interval,
        }
        (folder / PLACE_NAME).write_text(json.dumps(place), encoding="utf-8")
        (folder / RECORD_NAME).write_text(json.dumps(self._record, indent=2), encoding="utf-8")

    def resume_place(self, folder: Path) -> None:
        """Go on from where a saved state stood."""
        place = json.loads((folder / PLACE_NAME).read_text(encoding="utf-8"))
        self._loader.load_state_dict(place["data"])
        self.guard.load_state_dict(place["guard"])
        self.meter.tokens = place["tokens"]
        self._losses = list(place["losses"])
        # The sums are those of all processes; one of them takes them over.
        share = 1.0 if self.accelerator.is_main_process else 0.0
        device = self.args.device
        for name, pair in place["sums"].items():
            self._sums[name] = [torch.tensor(v * share, dtype=torch.float64, device=device) for v in pair]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log under the fixed names; with the training loss go the loss's own metrics and the speed."""
        if "loss" in logs:
            # Trainer's own mean counts steps that were skipped.
            logs["loss"] = sum(self._losses) / len(self._losses) if self._losses else math.nan
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
        """Figures since the last training log; starts a new interval. A mean of nothing is left out."""
        figures = {n: s if n in self._bare else s / w for n, (s, w) in self._reduced().items() if w or n in self._bare}
        self._sums, self._losses = {}, []
        return figures | self.meter.figures(self.state.global_step)

    def _reduced(self) -> dict[str, tuple[float, float]]:
        """The metrics' sums and weights over all processes."""
        names = sorted(self._sums)
        if not names:
            return {}
        held = torch.stack([torch.stack(self._sums[n]) for n in names]).to(self.args.device)
        whole = self.accelerator.reduce(held, "sum").cpu()
        return {name: (float(whole[i, 0]), float(whole[i, 1])) for i, name in enumerate(names)}


def _add(sums: dict[str, list[Tensor]], name: str, pair: list[Tensor]) -> None:
    """Add a metric's sum and weight to what is held of it, in float64."""
    wide = [value.double() for value in pair]
    held = sums.get(name)
    sums[name] = wide if held is None else [a + b for a, b in zip(held, wide, strict=True)]
