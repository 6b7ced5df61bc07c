"""The one training loop: ``transformers.Trainer``, with components chosen by a config."""

import functools
import gc
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PrinterCallback, TrainingArguments

from apt.checkpoint.loading import quiet_transformers
from apt.console.errors import UsageError
from apt.console.progress import progress
from apt.registry import Registry
from apt.training.attention import fast_attention
from apt.training.config import TrainConfig, build_loss, component_of, core_registry
from apt.training.contract import Loss, Resources
from apt.training.data import RowsDataset, TokenRows, stack
from apt.training.precision import autocast_dtype
from apt.training.result import TrainResult, curve_of
from apt.training.trainer import EVAL_METRIC, ContractTrainer, RunCallback

#: A transformers causal language model; its stubs are too partial to be of use to the checker.
Model = Any

RUN_NAME: Final = "run.json"
START_NAME: Final = "start"


def run(
    config: TrainConfig,
    model: Model,
    rows: TokenRows,
    *,
    run_dir: Path,
    identity: str = "",
    resources: Resources | None = None,
    registry: Registry | None = None,
    label: str = "training",
) -> TrainResult:
    """Train ``model`` in place and leave it with the weights of its best evaluation.

    :param rows: training rows; ``config.train.eval_rows`` of them are set aside to choose the best by.
    :param run_dir: where the run's state is kept; a killed run that is called again with the same arguments goes on
        from its last saved state, exactly.
    :param identity: whatever else the run depends on (digests of model, teacher and text); a run directory of another
        identity or config is refused.
    :raises UsageError: for a run directory of another run, or too few rows.
    :raises AptError: when the loss stops being finite.
    """
    registry = registry or core_registry()
    rows.check(model.config.vocab_size)
    training, evaluation = rows.split(config.train.eval_rows)
    loss = build_loss(config.train.loss, registry, resources=resources)
    _claim(run_dir, config, identity)
    model.to(device()).train()
    begun = time.monotonic()
    with (
        quiet_transformers(),
        _as_fast_as_it_goes(config, model, rows, resources),
        progress(label, config.train.steps, "steps") as bar,
    ):
        callback = RunCallback(bar, config.resolved())
        trainer = _build_trainer(config, model, loss, training, evaluation, run_dir, registry, callback)
        callback.trainer = trainer
        last = _last_complete(run_dir)
        if last is None:
            model.save_pretrained(run_dir / START_NAME)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        result = _result(trainer, time.monotonic() - begun)
        if result.best_step == 0:
            _restore_start(model, run_dir / START_NAME)
    model.eval()
    del trainer, callback
    gc.collect()
    return result


def is_resumable(run_dir: Path, config: TrainConfig, identity: str) -> bool:
    """Whether ``run_dir`` holds a run of exactly this config and identity."""
    try:
        held = json.loads((run_dir / RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.get("identity") == identity and held.get("config") == config.resolved()


def steps_within(
    seconds: float,
    config: TrainConfig,
    model: Model,
    rows: TokenRows,
    *,
    resources: Resources | None = None,
    registry: Registry | None = None,
) -> int:
    """Return how many steps of this run fit in ``seconds`` on this machine, by timing three of them.

    The timed steps are whole, with a learning rate of zero: the model comes out as it went in.
    """
    registry = registry or core_registry()
    loss = build_loss(config.train.loss, registry, resources=resources)
    optimizer = _build_optimizer(config, model, registry)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    place = device()
    dtype = autocast_dtype(config.train.precision, place)
    take = config.train.batch_rows
    batch = {"input_ids": rows.ids[:take].to(place), "labels": rows.labels[:take].to(place)}
    model.to(place).train()

    def one_step() -> float:
        begun = time.monotonic()
        for _ in range(config.train.grad_accum):
            with torch.autocast(place.type, dtype=dtype, enabled=dtype is not None):
                out = loss(model, batch, rng=torch.Generator(), step=0)
            (out.loss_sum / out.weight.clamp(min=1)).backward()  # type: ignore[no-untyped-call]
            float(out.loss_sum.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.monotonic() - begun

    with torch.random.fork_rng(), _as_fast_as_it_goes(config, model, rows, resources):
        one_step()
        per_step = min(one_step() for _ in range(3))
    return max(1, int(seconds / (per_step * _OVERHEAD)))


#: What evaluations, saving and the loop itself add to the steps.
_OVERHEAD: Final = 1.1


def _as_fast_as_it_goes(
    config: TrainConfig, model: Model, rows: TokenRows, resources: Resources | None
) -> AbstractContextManager[None]:
    teacher = resources.teacher if resources is not None else None
    models = [model] if teacher is None else [model, teacher]
    dtype = autocast_dtype(config.train.precision, device())
    return fast_attention(models, rows.ids.shape[1], dtype)


def device() -> torch.device:
    """Where training runs: the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _claim(run_dir: Path, config: TrainConfig, identity: str) -> None:
    """Write down whose run directory it is, or refuse one of another run."""
    if (run_dir / RUN_NAME).exists():
        if not is_resumable(run_dir, config, identity):
            raise UsageError(
                f"{run_dir} holds a run with another config, model or text", hint="remove it or choose another"
            )
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    aside = run_dir / f".{RUN_NAME}"
    aside.write_text(json.dumps({"identity": identity, "config": config.resolved()}, indent=2), encoding="utf-8")
    aside.replace(run_dir / RUN_NAME)


def _last_complete(run_dir: Path) -> Path | None:
    """The newest saved state that was written to its end; what a kill left unfinished is removed.

    Trainer writes ``trainer_state.json`` last, therefore a state that has it whole is whole.
    """
    found: list[tuple[int, Path]] = []
    for path in run_dir.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
    return max(found)[1] if found else None


def _build_optimizer(config: TrainConfig, model: Model, registry: Registry) -> torch.optim.Optimizer:
    section = config.train.optimizer
    build = component_of("optimizer", section, registry).load()
    optimizer: torch.optim.Optimizer = build(list(model.named_parameters()), section)
    return optimizer


def _build_trainer(
    config: TrainConfig,
    model: Model,
    loss: Loss,
    training: TokenRows,
    evaluation: TokenRows,
    run_dir: Path,
    registry: Registry,
    callback: RunCallback,
) -> ContractTrainer:
    section = config.train
    optimizer = _build_optimizer(config, model, registry)
    schedule = component_of("scheduler", section.scheduler, registry).load()
    factor: Callable[[int], float] = functools.partial(
        _factor, schedule=schedule, total=section.steps, options=section.scheduler
    )
    trainer = ContractTrainer(
        loss=loss,
        evaluation=evaluation,
        autocast=autocast_dtype(section.precision, device()),
        model=model,
        args=_arguments(config, run_dir),
        train_dataset=RowsDataset(training),
        eval_dataset=RowsDataset(evaluation),
        data_collator=stack,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _factor(step: int, *, schedule: Callable[..., float], total: int, options: Any) -> float:
    return schedule(step, total, options)


def _arguments(config: TrainConfig, run_dir: Path) -> TrainingArguments:
    section = config.train
    every = min(section.eval_every, section.steps)
    return TrainingArguments(
        output_dir=str(run_dir),
        max_steps=section.steps,
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
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=EVAL_METRIC,
        greater_is_better=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        use_cpu=device().type == "cpu",
    )


def _result(trainer: ContractTrainer, seconds: float) -> TrainResult:
    history = trainer.state.log_history
    curve = curve_of(history)
    best = min(curve, key=lambda point: point.eval_loss)
    last = next((e for e in reversed(history) if "train/loss" in e), {})
    return TrainResult(
        curve=curve,
        best_step=best.step,
        best_eval_loss=best.eval_loss,
        steps=trainer.state.global_step,
        tokens=trainer.tokens,
        seconds=seconds,
        metrics={k: float(v) for k, v in last.items() if "/" in k},
    )


def _restore_start(model: Model, start: Path) -> None:
    """Give the model the weights it came with: training did not improve it."""
    from safetensors.torch import load_model

    load_model(model, start / "model.safetensors", strict=False)
    model.tie_weights()
