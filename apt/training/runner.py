"""The one training loop: ``transformers.Trainer``, with components chosen by a config."""

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from apt.checkpoint.loading import quiet_transformers
from apt.console import output
from apt.console.progress import progress
from apt.registry import Registry
from apt.training.attention import fast_attention
from apt.training.callbacks import EarlyStop, RunCallback, has_converged
from apt.training.components import build, build_loss, core_registry, target_of
from apt.training.config import TrainConfig, TrainSection
from apt.training.contract import Batch, Resources, RowSource, RowStream, Tuning, divisor_of
from apt.training.data.loader import BatchLoader
from apt.training.data.rows import Chosen, TokenRows, held_out, is_stream, on_device
from apt.training.environment import unsteered
from apt.training.forward import base_of
from apt.training.guards import StepGuard
from apt.training.module import LossModule
from apt.training.opening import check_possible
from apt.training.parallel import on_first, processes
from apt.training.precision import autocast_dtype
from apt.training.record import run_record
from apt.training.result import TrainResult, curve_of
from apt.training.run_directory import alone_in, claim, told_when_full, write_record
from apt.training.saved_states import history_of, last_whole
from apt.training.sharding import WholeState, empty, fill, shard, stand_in, whole_states
from apt.training.tracking.choice import tracked
from apt.training.trainer import EVAL_METRIC, ContractTrainer

#: A transformers causal language model; its stubs are too partial to be of use to the checker.
Model = Any

START_NAME: Final = "start.safetensors"


@dataclass(frozen=True)
class _Parts:
    """What a run is made of, once it is built."""

    module: LossModule
    trained: Model
    tuning: Tuning
    loader: BatchLoader
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    whole_states: list[WholeState]

    def finish(self) -> None:
        """Leave the model as a stock one, with the weights that it has now; every process has to call it."""
        if self.module.model is not self.trained:
            fill(self.trained, self.module.model)
        self.tuning.finish(self.trained)


@unsteered()
def run(
    config: TrainConfig,
    model: Model,
    data: RowSource | RowStream,
    *,
    evaluation: RowSource | None = None,
    run_dir: Path,
    identity: str = "",
    resources: Resources | None = None,
    registry: Registry | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    may_change: tuple[str, ...] = (),
    choose_from: int = 0,
    label: str = "training",
    name: str = "",
) -> TrainResult:
    """Train ``model`` in place and leave it with the weights of its best evaluation.

    :param data: what is trained on; without ``evaluation``, ``train.eval_rows`` of its rows are set aside to choose the
        best by.
    :param run_dir: where the run's state is kept; a killed run that is called again with the same arguments goes on
        from its last saved state, exactly.
    :param identity: whatever else the run depends on (digests of model, teacher and text); a run directory of another
        identity or config is refused.
    :param callbacks: of Trainer; they may look, and hold parameters to a rule (a mask) that needs no state of its own
        but the step's number: a resumed run is given new ones. They may not steer.
    :param may_change: keys of the config (``train.steps``) in which a run that is resumed may differ.
    :param choose_from: evaluations before this step are no candidates for the best: what a schedule (of sparsity)
        makes of the model is not there yet. The last step gives the last weights.
    :param name: of the run, for trackers; the run directory's when absent.
    :raises UsageError: for a run directory of another run, or one that is in use, or too few rows to set some aside.
    :raises BadInputError: when there are fewer rows to train on than a micro-batch has.
    :raises CannotWriteError: when the disk is full; the run can be resumed.
    :raises AptError: for what :func:`~apt.training.opening.check_possible` refuses, and when a guard stops the run.
    """
    section = config.train
    check_possible(config)
    resources = replace(resources or Resources(), registry=registry or core_registry(), model=model)
    resources = replace(resources, rows_digest=(data.origin if isinstance(data, Chosen) else data).digest())
    if isinstance(data, TokenRows):
        data.check(model.config.vocab_size)
    training, evaluation = held_out(data, evaluation, section.eval_rows, batch_rows=section.batch_rows)
    begun = time.monotonic()
    with ExitStack() as stack:
        _occupy(stack, run_dir)
        stack.enter_context(told_when_full(run_dir))
        together = processes().num_processes
        on_first(lambda: claim(run_dir, config, identity, may_change, processes=together))
        start = _start_of(run_dir, section)
        if start.state is not None:
            output.note(f"going on after step {start.done_steps} of {start.steps}, from {start.state}")
        stack.enter_context(quiet_transformers())
        dtype = autocast_dtype(section.precision, device())
        stack.enter_context(fast_attention(_models(model, resources), data, dtype))
        bar = stack.enter_context(progress(label, section.steps, "steps"))
        set_seed(section.seed)  # a loss or an adapter may begin with random parameters of its own
        parts = _build(config, model, training, resources, start.steps)
        made_with = run_record(config)
        record = dict(made_with)
        trainer = _trainer(config, parts, evaluation, run_dir, record, start.steps)
        trainer.choose_from = choose_from
        if trainer.meter.peak is not None:
            record["peak_flops_per_s"] = trainer.meter.peak
        tracking = _track(stack, config, run_dir, record, name or run_dir.name, start)
        callback = RunCallback(bar, config.resolved())
        callback.trainer = trainer
        stops = [EarlyStop(section.early_stopping)] if section.early_stopping is not None else []
        for each in (callback, *callbacks, *tracking, *stops):
            trainer.add_callback(each)
        _keep_start(trainer, run_dir / START_NAME)
        if start.state is not None:
            trainer.resume_place(start.state)
        trainer.train(resume_from_checkpoint=str(start.state) if start.state else None)
        result = _result(trainer, time.monotonic() - begun, made_with)
        if result.best_step == 0 and not choose_from:
            _restore_start(trainer, run_dir / START_NAME)
        parts.finish()
    model.eval()
    del trainer, callback, parts
    gc.collect()
    return result


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run begins.

    :param state: the saved state that it goes on from.
    :param steps: the step that it ends at; one that had been stopped early has come there.
    """

    state: Path | None
    steps: int
    done_steps: int = 0
    history: tuple[dict[str, Any], ...] = ()


def _occupy(stack: ExitStack, run_dir: Path) -> None:
    """Hold the run directory until the run ends; one process does it for all."""
    on_first(lambda: stack.enter_context(alone_in(run_dir)))


def _start_of(run_dir: Path, section: TrainSection) -> _Start:
    state = on_first(lambda: last_whole(run_dir))
    if state is None:
        return _Start(None, section.steps)
    done, history = history_of(state)
    stopped = section.early_stopping is not None and has_converged(history, section.early_stopping)
    return _Start(state, done if stopped else section.steps, done, tuple(history))


def _track(
    stack: ExitStack, config: TrainConfig, run_dir: Path, record: dict[str, Any], name: str, start: _Start
) -> list[TrainerCallback]:
    """Write the run's record down and start its trackers; one process does it for all."""
    if not processes().is_main_process:
        return []
    write_record(run_dir, record)
    history, done = start.history, start.done_steps
    return [stack.enter_context(tracked(config.tracking, run_dir, record, name=name, history=history, done_steps=done))]


def steps_within(
    seconds: float,
    config: TrainConfig,
    model: Model,
    rows: RowSource,
    *,
    resources: Resources | None = None,
    registry: Registry | None = None,
) -> int:
    """Return how many steps of this run fit in ``seconds`` on this machine, by timing three of them.

    The timed steps are whole, with a learning rate of zero: the model comes out as it went in.
    """
    section = config.train
    resources = replace(resources or Resources(), registry=registry or core_registry(), model=model)
    dtype = autocast_dtype(section.precision, device())
    with torch.random.fork_rng(), fast_attention(_models(model, resources), rows, dtype):
        parts = _build(config, model, rows, resources, section.steps)
        for group in parts.optimizer.param_groups:
            group["lr"] = 0.0
        batches = iter(parts.loader)

        def one_step() -> float:
            begun = time.monotonic()
            for _ in range(section.grad_accum):
                batch: Batch = on_device(next(batches), device())
                with torch.autocast(device().type, dtype=dtype, enabled=dtype is not None):
                    batch = parts.module.prepare(batch, torch.Generator(), 0)
                    loss = parts.module(batch, torch.Generator(), 0)
                assert parts.module.out is not None
                (loss / divisor_of(parts.module.out.weight)).backward()
                float(loss.detach())
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=True)
            return time.monotonic() - begun

        one_step()
        per_step = min(one_step() for _ in range(3))
        parts.finish()
    return max(1, int(seconds / (per_step * _OVERHEAD)))


#: What evaluations, saving and the loop itself add to the steps.
_OVERHEAD: Final = 1.1


def device() -> torch.device:
    """Where training runs: this process's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found: torch.device = processes().device
    return found


def _models(model: Model, resources: Resources) -> list[Model]:
    return [m for m in (model, resources.teacher) if m is not None]


def _build(config: TrainConfig, model: Model, data: RowSource | RowStream, resources: Resources, steps: int) -> _Parts:
    section = config.train
    tuning: Tuning = build("tuning", section.tuning, resources)
    model.to(device()).train()
    trained = tuning.begin(model)
    sharded = section.sharding != "none"
    loss = build_loss(section.loss, resources=resources)
    module = LossModule(stand_in(trained) if sharded else trained, loss).to(device())
    if sharded:
        shard(module)
        empty(trained)
    if section.compile:
        base_of(trained).compile()
    optimizer = _optimizer(section, module, resources)
    return _Parts(
        module=module,
        trained=trained,
        tuning=tuning,
        loader=_loader(section, data, resources, steps),
        optimizer=optimizer,
        schedule=_schedule(section, optimizer, resources),
        whole_states=whole_states(optimizer) if sharded else [],
    )


def _optimizer(section: TrainSection, module: LossModule, resources: Resources) -> torch.optim.Optimizer:
    """Parameters go by their names in the model; those of the loss keep the prefix ``loss.``."""
    named = [(name.removeprefix("model."), p) for name, p in module.named_parameters()]
    make = target_of("optimizer", section.optimizer, resources.registry)
    optimizer: torch.optim.Optimizer = make(named, section.optimizer)
    return optimizer


def _schedule(
    section: TrainSection, optimizer: torch.optim.Optimizer, resources: Resources
) -> torch.optim.lr_scheduler.LambdaLR:
    schedule = target_of("scheduler", section.scheduler, resources.registry)
    factor: Callable[[int], float] = functools.partial(
        _factor, schedule=schedule, total=section.steps, options=section.scheduler
    )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _factor(step: int, *, schedule: Callable[..., float], total: int, options: Any) -> float:
    return schedule(step, total, options)


def _loader(section: TrainSection, data: RowSource | RowStream, resources: Resources, steps: int) -> BatchLoader:
    state = processes()
    sampler = None
    if not is_stream(data):
        make = target_of("sampler", section.sampler, resources.registry)
        sampler = make(section.sampler, data, batch_rows=section.batch_rows, seed=section.seed)
    return BatchLoader(
        data,
        sampler,
        batch_rows=section.batch_rows,
        batches=steps * section.grad_accum,
        process=state.process_index,
        processes=state.num_processes,
    )


def _trainer(
    config: TrainConfig,
    parts: _Parts,
    evaluation: RowSource,
    run_dir: Path,
    record: dict[str, Any],
    steps: int,
) -> ContractTrainer:
    section = config.train
    trainer = ContractTrainer(
        loader=parts.loader,
        evaluation=evaluation,
        autocast=autocast_dtype(section.precision, device()),
        guard=StepGuard(section.guards),
        record=record,
        whole_states=parts.whole_states,
        model=parts.module,
        args=_arguments(section, run_dir, steps),
        eval_dataset=[],  # evaluated by the trainer itself; Trainer only asks whether there is one
        optimizers=(parts.optimizer, parts.schedule),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(section: TrainSection, run_dir: Path, steps: int) -> TrainingArguments:
    every = min(section.eval_every, section.steps)
    return TrainingArguments(
        output_dir=str(run_dir),
        max_steps=steps,
        per_device_train_batch_size=section.batch_rows,
        per_device_eval_batch_size=section.batch_rows,
        gradient_accumulation_steps=section.grad_accum,
        max_grad_norm=section.max_grad_norm,
        seed=section.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        logging_strategy="steps",
        logging_steps=min(section.log_every or every, section.steps),
        logging_nan_inf_filter=False,
        load_best_model_at_end=True,
        metric_for_best_model=EVAL_METRIC,
        greater_is_better=False,
        ignore_data_skip=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        log_level_replica="passive",  # as quiet as the first process
        use_cpu=device().type == "cpu",
    )


def _result(trainer: ContractTrainer, seconds: float, record: Mapping[str, Any]) -> TrainResult:
    history = trainer.state.log_history
    curve = curve_of(history)
    # An evaluation that is no number is never the best; when none is one, the model keeps the weights it came with.
    candidates = [point for point in curve if point.step >= trainer.choose_from] or curve[-1:]
    best = min(candidates, key=lambda point: point.eval_loss if math.isfinite(point.eval_loss) else math.inf)
    last = next((e for e in reversed(history) if "train/loss" in e), {})
    return TrainResult(
        curve=curve,
        best_step=best.step,
        best_eval_loss=best.eval_loss,
        steps=trainer.state.global_step,
        tokens=trainer.meter.read_tokens(),
        seconds=seconds,
        metrics={k: float(v) for k, v in last.items() if "/" in k},
        record=record,
        skipped_steps=trainer.guard.skipped,
    )


def _keep_start(trainer: ContractTrainer, path: Path) -> None:
    """Keep the weights that the model came with: training may not improve on them."""
    state = trainer.module.trained_state(keep=trainer.args.should_save)
    if trainer.args.should_save:
        aside = path.with_name(f".{path.name}")
        save_file(state, aside)
        aside.replace(path)
    trainer.accelerator.wait_for_everyone()


def _restore_start(trainer: ContractTrainer, path: Path) -> None:
    """Give the model the weights it came with: training did not improve it."""
    trainer.module.load_state_dict(load_file(path), strict=False)
