"""The operation ``distill``: pair, train, measure, write."""

import functools
import gc
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apt.checkpoint.reader import Checkpoint
from apt.console import output
from apt.console.errors import UsageError
from apt.plugins.host import current
from apt.plugins.optional.distillation.caching import check_cache
from apt.plugins.optional.distillation.lessons import Lesson, prepare
from apt.plugins.optional.distillation.measure import measure
from apt.plugins.optional.distillation.options import DEFAULT_STEPS, DistillOptions
from apt.plugins.optional.distillation.pairs import Pair, open_pair, with_student
from apt.plugins.optional.distillation.results import Control, DistillPlan, DistillResult, Figures
from apt.plugins.optional.distillation.texts import text_of
from apt.registry import Registry
from apt.training.config import TrainConfig
from apt.training.data.rows import is_stream
from apt.training.environment import check_alone
from apt.training.opening import check_possible
from apt.training.output import round_weights, write_trained
from apt.training.result import TrainResult
from apt.training.run_directory import held_steps, identity_of, run_dir_of
from apt.training.runner import device, run, steps_within


def plan(options: DistillOptions) -> DistillPlan:
    """Check all that can be checked without weights, and tell what would be done.

    :raises AptError: for whatever :func:`distill` would refuse before it trains.
    """
    pair = open_pair(options)
    config = options.training(steps=options.steps or DEFAULT_STEPS, registry=current().registry())
    _check_config(options, config)
    return DistillPlan(
        teacher=str(pair.teacher.path),
        student=pair.student_name,
        output=options.output,
        text=_text_name(options, config, pair.teacher),
        shared_vocab=pair.shared_vocab,
        config=config.resolved(),
    )


def distill(options: DistillOptions, *, registry: Registry | None = None) -> DistillResult:
    """Train the student on the teacher's predictions and write its best checkpoint in its own dtype.

    A killed call that is given again goes on from its last saved state; the state of another call is refused.

    :param registry: where a config's components are looked up; those of all plugins when absent.
    :raises UsageError: when the state beside the output is of another call, or several processes were started.
    :raises UnsupportedError: when the tokenizers differ.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    check_alone("distill")
    registry = registry or current().registry()
    pair = open_pair(options)
    config = options.training(steps=options.steps or DEFAULT_STEPS, registry=registry)
    _check_config(options, config)
    run_dir = run_dir_of(options.output)
    pair = with_student(pair, run_dir / "student")

    @functools.cache
    def loaded() -> Any:
        return pair.student.load(dtype=torch.float32)

    lesson = prepare(options, config, pair, loaded, registry)
    student = loaded()
    identity = _identity(pair, lesson)
    steps = _steps(options, config, student, lesson, registry, run_dir / "distill", identity)
    config = options.training(steps=steps, registry=registry)
    trained = run(
        config, student, lesson.rows, evaluation=lesson.evaluation, run_dir=run_dir / "distill", identity=identity,
        resources=lesson.resources, registry=registry, label="distilling",
    )  # fmt: skip
    lesson = replace(lesson, resources=replace(lesson.resources, teacher=None))
    control = None
    if options.control:
        control = _control(options, pair, lesson, steps, run_dir / "control", identity, registry)
    gc.collect()
    result = _measured(options, pair, lesson, student, trained, control, config)
    _write(options, pair, student, result, lesson, config, trained.record)
    if not options.keep_run:
        shutil.rmtree(run_dir, ignore_errors=True)
    return result


def _check_config(options: DistillOptions, config: TrainConfig) -> None:
    """Refuse what a config and the options beside it say differently, and what this machine cannot do."""
    if options.cache is not None:
        check_cache(options.cache, config)
    if config.data is not None and options.text is not None:
        raise UsageError("a text was given beside a config with a section data", hint="choose one")
    check_possible(config)


def _text_name(options: DistillOptions, config: TrainConfig, teacher: Checkpoint) -> str:
    return f"data of {options.config}" if config.data is not None else text_of(options, teacher)


def _steps(
    options: DistillOptions, config: TrainConfig, student: Any, lesson: Lesson, registry: Registry | None,
    run_dir: Path, identity: str,
) -> int:  # fmt: skip
    """Return the steps of the run; as many as fit in its seconds were counted once, when it began."""
    if options.seconds is None:
        return config.train.steps
    begun_with = held_steps(run_dir, config, identity)
    if begun_with is not None:
        return begun_with
    if is_stream(lesson.rows):
        raise UsageError("seconds cannot be planned for a stream of rows", hint="give steps")
    timed = options.training(steps=1, registry=registry)
    steps = steps_within(options.seconds, timed, student, lesson.rows, resources=lesson.resources, registry=registry)
    output.note(f"{steps} steps fit in {options.seconds:g} s")
    return steps


def _identity(pair: Pair, lesson: Lesson) -> str:
    """What a run depends on beside its config."""
    return identity_of(pair.teacher.digest(), pair.student.digest(), lesson.digest(), str(pair.shared_vocab))


def _control(
    options: DistillOptions,
    pair: Pair,
    lesson: Lesson,
    steps: int,
    run_dir: Path,
    identity: str,
    registry: Registry | None,
) -> tuple[Any, TrainResult]:
    """Train the same student on cross-entropy alone: equal steps, rows, order and seed."""
    model = pair.student.load(dtype=torch.float32)
    config = options.training(steps=steps, loss="ce", registry=registry)
    trained = run(
        config, model, lesson.rows, evaluation=lesson.evaluation, run_dir=run_dir, identity=identity,
        resources=lesson.resources, registry=registry, label="training the control",
    )  # fmt: skip
    return model, trained


def _measured(
    options: DistillOptions,
    pair: Pair,
    lesson: Lesson,
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
        round_weights(model, stored)
    reference = pair.teacher.load(dtype=torch.float32, device=str(device()))
    teacher_perplexity, figures = measure(reference, [m.to(device()) for m in states], lesson.heldout)
    return DistillResult(
        path=options.output,
        teacher=str(pair.teacher.path),
        student=pair.student_name,
        text=lesson.source,
        heldout_text=lesson.heldout.source,
        heldout_tokens=lesson.heldout.tokens,
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
    pair: Pair,
    student: Any,
    result: DistillResult,
    lesson: Lesson,
    config: TrainConfig,
    record: Mapping[str, Any],
) -> None:
    lineage: dict[str, Any] = {
        "teacher": {"name": pair.teacher.name, "digest": pair.teacher.digest()},
        "text": lesson.source,
        "text_sha256": lesson.digest(),
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
    write_trained(
        options.output, student, operation="distill", parent=pair.student, config=config, record=record,
        lineage=lineage, metrics=metrics, overwrite=options.overwrite, teacher=pair.teacher,
    )  # fmt: skip
