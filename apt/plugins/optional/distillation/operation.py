"""The operation ``distill``: pair, train, measure, write."""

import gc
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from apt.checkpoint.atomic import recover
from apt.checkpoint.loading import quiet_transformers
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console import output
from apt.console.errors import TargetExistsError, UsageError
from apt.console.output import to_jsonable
from apt.plugins.optional.distillation.measure import measure
from apt.plugins.optional.distillation.options import DEFAULT_STEPS, DistillOptions
from apt.plugins.optional.distillation.pairing import shared_vocabulary
from apt.plugins.optional.distillation.results import Control, DistillPlan, DistillResult, Figures
from apt.plugins.optional.distillation.texts import Texts, load_texts, text_of
from apt.registry import Registry
from apt.training.config import TrainConfig
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows
from apt.training.precision import autocast_dtype
from apt.training.result import TrainResult
from apt.training.run_directory import is_resumable
from apt.training.runner import device, run, steps_within

CONFIG_NAME = "training.yaml"


@dataclass(frozen=True, slots=True)
class _Pair:
    teacher: Checkpoint
    student: Checkpoint
    shared_vocab: int


def plan(options: DistillOptions) -> DistillPlan:
    """Check all that can be checked without weights, and tell what would be done.

    :raises AptError: for whatever :func:`distill` would refuse before it trains.
    """
    pair = _pair(options)
    config = options.config(steps=options.steps or DEFAULT_STEPS)
    return DistillPlan(
        teacher=str(pair.teacher.path),
        student=str(pair.student.path),
        output=options.output,
        text=text_of(options, pair.teacher),
        shared_vocab=pair.shared_vocab,
        config=config.resolved(),
    )


def distill(options: DistillOptions, *, registry: Registry | None = None) -> DistillResult:
    """Train the student on the teacher's predictions and write its best checkpoint in its own dtype.

    A killed call that is given again goes on from its last saved state.

    :raises UnsupportedError: when the tokenizers differ.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    pair = _pair(options)
    options.config(steps=1, registry=registry)
    teacher = pair.teacher.load(dtype=_teacher_dtype(options), device=str(device()))
    teacher.requires_grad_(False)
    resources = Resources(teacher=teacher, shared_vocab=pair.shared_vocab)
    student = pair.student.load(dtype=torch.float32)
    texts = load_texts(options, pair.teacher, steps=options.steps or DEFAULT_STEPS, model=teacher)
    rows = TokenRows(texts.train.ids, texts.train.labels)
    rows.check(min(teacher.config.vocab_size, student.config.vocab_size))
    steps = _steps(options, student, rows, resources, registry)
    config = options.config(steps=steps, registry=registry)
    run_dir = options.output.absolute().with_name(f".{options.output.absolute().name}.run")
    identity = _identity(pair, texts)
    _clear_foreign(run_dir / "distill", config, identity)
    trained = run(
        config, student, rows, run_dir=run_dir / "distill", identity=identity, resources=resources,
        registry=registry, label="distilling",
    )  # fmt: skip
    del teacher, resources
    control = None
    if options.control:
        control = _control(options, pair, rows, steps, run_dir / "control", identity, registry)
    gc.collect()
    result = _measured(options, pair, texts, student, trained, control, config)
    _write(options, pair, student, result, texts, config)
    if not options.keep_run:
        shutil.rmtree(run_dir, ignore_errors=True)
    return result


def _pair(options: DistillOptions) -> _Pair:
    """Open both checkpoints by their headers and refuse what cannot be distilled, before any weight is read."""
    if options.steps is not None and options.seconds is not None:
        raise UsageError("steps and seconds were both given", hint="choose one")
    recover(options.output)
    if options.output.exists() and not options.overwrite:
        raise TargetExistsError(f"{options.output} exists already", hint="choose another output or give --overwrite")
    teacher, student = Checkpoint.open(options.teacher), Checkpoint.open(options.student)
    return _Pair(teacher, student, shared_vocabulary(teacher, student))


def _teacher_dtype(options: DistillOptions) -> torch.dtype:
    """The dtype that the products run in anyway: a teacher that is not trained needs no wider weights."""
    return autocast_dtype(options.precision, device()) or torch.float32


def _steps(
    options: DistillOptions,
    student: Any,
    rows: TokenRows,
    resources: Resources,
    registry: Registry | None,
) -> int:
    if options.seconds is None:
        return options.steps or DEFAULT_STEPS
    config = options.config(steps=1, registry=registry)
    steps = steps_within(options.seconds, config, student, rows, resources=resources, registry=registry)
    output.note(f"{steps} steps fit in {options.seconds:g} s")
    return steps


def _identity(pair: _Pair, texts: Texts) -> str:
    """What a run depends on beside its config."""
    parts = [pair.teacher.digest(), pair.student.digest(), texts.digest(), str(pair.shared_vocab)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _clear_foreign(run_dir: Path, config: TrainConfig, identity: str) -> None:
    """Take away what another call, since given up, left beside the same output."""
    if run_dir.exists() and not is_resumable(run_dir, config, identity):
        output.note(f"{run_dir} is of another run and begins anew")
        shutil.rmtree(run_dir)


def _control(
    options: DistillOptions,
    pair: _Pair,
    rows: TokenRows,
    steps: int,
    run_dir: Path,
    identity: str,
    registry: Registry | None,
) -> tuple[Any, TrainResult]:
    """Train the same student on cross-entropy alone: equal steps, rows, order and seed."""
    model = pair.student.load(dtype=torch.float32)
    config = options.config(steps=steps, loss="ce", registry=registry)
    _clear_foreign(run_dir, config, identity)
    trained = run(
        config, model, rows, run_dir=run_dir, identity=identity, registry=registry, label="training the control"
    )
    return model, trained


def _measured(
    options: DistillOptions,
    pair: _Pair,
    texts: Texts,
    student: Any,
    trained: TrainResult,
    control: tuple[Any, TrainResult] | None,
    config: TrainConfig,
) -> DistillResult:
    """Score teacher, student before and after, and control on the held-out rows."""
    stored = pair.student.stored_dtype
    states = [pair.student.load(dtype=torch.float32), student]
    if control is not None:
        states.append(control[0])
    for model in states:
        # Measured as it is stored: the weights are rounded to the checkpoint's dtype first.
        model.to(stored).to(torch.float32)
    reference = pair.teacher.load(dtype=torch.float32, device=str(device()))
    teacher_perplexity, figures = measure(reference, [m.to(device()) for m in states], texts.heldout)
    return DistillResult(
        path=options.output,
        teacher=str(pair.teacher.path),
        student=str(pair.student.path),
        text=texts.train.source,
        heldout_text=texts.heldout.source,
        heldout_tokens=texts.heldout.tokens,
        parameters=student.num_parameters(),
        teacher_parameters=reference.num_parameters(),
        teacher_perplexity=teacher_perplexity,
        before=figures[0],
        after=figures[1],
        control=_control_result(control, figures),
        curve=trained.curve,
        best_step=trained.best_step,
        steps=trained.steps,
        tokens=trained.tokens,
        seconds=trained.seconds,
        metrics=trained.metrics,
        config=config.resolved(),
    )


def _control_result(control: tuple[Any, TrainResult] | None, figures: list[Figures]) -> Control | None:
    if control is None:
        return None
    trained = control[1]
    return Control(figures[2], trained.curve, trained.best_step, trained.seconds)


def _write(
    options: DistillOptions,
    pair: _Pair,
    student: Any,
    result: DistillResult,
    texts: Texts,
    config: TrainConfig,
) -> None:
    lineage: dict[str, Any] = {
        "teacher": {"name": pair.teacher.name, "digest": pair.teacher.digest()},
        "text": texts.train.source,
        "text_sha256": texts.digest(),
        "config_sha256": config.digest(),
        "config": config.resolved(),
    }
    metrics: dict[str, Any] = {
        "heldout_tokens": result.heldout_tokens,
        "teacher_perplexity": result.teacher_perplexity,
        "before": result.before,
        "after": result.after,
        "control": result.control.figures if result.control else None,
        "best_step": result.best_step,
        "tokens": result.tokens,
        "curve": result.curve,
    }
    with (
        quiet_transformers(),
        CheckpointWriter(
            options.output, operation="distill", parent=pair.student, options=lineage, overwrite=options.overwrite
        ) as writer,
    ):
        student.to(pair.student.stored_dtype).save_pretrained(writer.directory)
        writer.copy_side_files(pair.student)
        text = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
        (writer.directory / CONFIG_NAME).write_text(text, encoding="utf-8")
        writer.metrics.update(to_jsonable(metrics))
