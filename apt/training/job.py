"""The operation ``train``: a config, the model that it names, and the checkpoint that comes of it."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from apt import store
from apt.checkpoint.atomic import check_target
from apt.checkpoint.lock import LOCK_NAME
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import AptError, UsageError
from apt.evaluation.statistics import Estimate, paired_ratio, ratio_estimate
from apt.evaluation.texts import shared_context
from apt.options import FileRef, ModelRef, Options, OutputPath, Overwrite
from apt.registry import Registry, did_you_mean
from apt.training.attention import fast_attention
from apt.training.components import build, core_registry, needed_by
from apt.training.config import TrainConfig, read_config
from apt.training.contract import Resources, RowSource, RowStream
from apt.training.data.rows import TokenRows, held_out, is_stream
from apt.training.evaluation import score_source
from apt.training.opening import check_possible, open_trainable, rows_need_weights, tokenizer_of
from apt.training.output import round_weights, sources_of, write_trained
from apt.training.pairing import shared_vocabulary
from apt.training.parallel import on_first, processes
from apt.training.report import TrainPlan, TrainReport
from apt.training.result import TrainResult
from apt.training.run_directory import CONFIG_NAME, RECORD_NAME, RUN_NAME, identity_of, run_dir_of
from apt.training.runner import START_NAME, device, run
from apt.training.teachers.loading import load_teacher
from apt.training.tracking.tensorboard import FOLDER as TENSORBOARD_FOLDER
from apt.training.tracking.weights_and_biases import FOLDER as WANDB_FOLDER
from apt.training.tracking.weights_and_biases import PLACE_NAME as WANDB_PLACE_NAME

#: A key that a resumed run may differ in without being one of the config's.
_PROCESSES: Final = "processes"


class TrainOptions(Options):
    """Train a model as a config says."""

    config: FileRef = Field(description="A YAML file with the whole run.")
    model: ModelRef | None = Field(default=None, description="The model to train; the config's when absent.")
    teacher: ModelRef | None = Field(
        default=None, description="The teacher of a distillation; the config's when absent."
    )
    output: OutputPath
    run_dir: Path | None = Field(
        default=None, description="Where the run's state is kept; .NAME.run beside the output when absent."
    )
    allow_change: tuple[str, ...] = Field(
        default=(), description="Keys of the config (train.steps) in which a run that is resumed may differ."
    )
    keep_run: bool = Field(default=False, description="Leave the saved states when done.")
    overwrite: Overwrite = False


@dataclass(frozen=True, slots=True)
class _Job:
    """A run whose parts were found, by headers alone."""

    config: TrainConfig
    model: Checkpoint
    teacher: Checkpoint | None
    shared_vocab: int | None
    run_dir: Path


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is trained on, and what the best weights are chosen by."""

    training: RowSource | RowStream
    evaluation: RowSource
    digest: str


def default_output(model: str) -> Path:
    """Return where a model goes when no output is named: the store, under the name of what it was."""
    return store.model_path(f"{store.resolve(model).name}-trained")


def output_of(options: Mapping[str, Any], registry: Registry | None = None) -> Path:
    """Return the output of a call that names none.

    :raises DocumentError: for a config with faults; :raises UsageError: when no model is named.
    """
    config = read_config(options["config"], registry)
    return default_output(_named_model(options.get("model"), config, options["config"]))


def plan(options: TrainOptions, registry: Registry | None = None) -> TrainPlan:
    """Check all that can be checked without weights, and tell what would be done.

    :raises AptError: for whatever :func:`train` would refuse before it reads weights.
    """
    job = _open(options, registry)
    return TrainPlan(
        model=str(job.model.path),
        teacher=str(job.teacher.path) if job.teacher is not None else None,
        output=options.output,
        run_dir=job.run_dir,
        parameters=job.model.parameters,
        rows_per_step=job.config.train.batch_rows * job.config.train.grad_accum * processes().num_processes,
        config_sha256=job.config.digest(),
        config=job.config.resolved(),
    )


def train(options: TrainOptions, registry: Registry | None = None) -> TrainReport:
    """Train a model as a config says and write the weights of its best evaluation in its own dtype.

    A killed call that is given again goes on from its last saved state.

    :param registry: where components are looked up; the core's when absent.
    :raises DocumentError: for a config with faults, each with file and line, before any weight is read.
    :raises UsageError: when a model, data or a teacher is not named, or the run directory is of another run.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    :raises UnsupportedError: when the teacher has another tokenizer.
    """
    registry = registry or core_registry()
    job = _open(options, registry)
    resources = Resources(
        shared_vocab=job.shared_vocab, tokenizer=tokenizer_of(job.model), registry=registry,
        context=shared_context(c.config for c in (job.model, job.teacher) if c is not None),
    )  # fmt: skip
    assert job.config.data is not None
    rows = None if rows_need_weights(job.config, registry) else _rows(job, resources)
    model = job.model.load(dtype=torch.float32)
    teacher = load_teacher(job.teacher, job.config, device()) if job.teacher is not None else None
    resources = dataclasses.replace(resources, teacher=teacher, model=model)
    if rows is None:
        rows = _rows(job, resources)
    before = _scores(model, rows.evaluation, job.config)
    if not before[:, 1].any():
        raise AptError("no token of the evaluation rows is counted")
    trained = run(
        job.config, model, rows.training, evaluation=rows.evaluation, run_dir=job.run_dir,
        identity=_identity(job, rows), resources=resources, registry=registry, may_change=options.allow_change,
        label="training", name=options.output.absolute().name,
    )  # fmt: skip
    # Measured as it is stored: the weights are rounded to the checkpoint's dtype first.
    round_weights(model, job.model.stored_dtype)
    report = _report(options, job, model, trained, before, _scores(model, rows.evaluation, job.config))
    on_first(lambda: _leave(options, job, model, rows, report, trained.record))
    return report


def _open(options: TrainOptions, registry: Registry | None) -> _Job:
    """Find everything that a run needs, and refuse what cannot be done before any weight is read."""
    config = read_config(options.config, registry)
    _check_allowed(options.allow_change, config)
    check_possible(config)
    name = _named_model(options.model, config, options.config)
    if config.data is None:
        raise UsageError(f"{options.config}: data: is missing", hint="say what is trained on: data.train")
    run_dir = options.run_dir or run_dir_of(options.output)
    if run_dir.exists() and not (run_dir / RUN_NAME).exists() and _holds_anything(run_dir):
        raise UsageError(f"{run_dir} holds something else than a run", hint="choose an empty directory")
    teacher_name = _named_teacher(options, config, registry)
    config = config.model_copy(update={"model": name, "teacher": teacher_name})
    model = open_trainable(name)
    teacher = open_trainable(teacher_name) if teacher_name is not None else None
    check_target(options.output, overwrite=options.overwrite, sources=sources_of(model, teacher))
    shared = shared_vocabulary(teacher, model) if teacher is not None else None
    return _Job(config, model, teacher, shared, run_dir)


def _named_model(given: str | None, config: TrainConfig, path: Path) -> str:
    name = given or config.model
    if name is None:
        raise UsageError(f"{path}: no model is named", hint="--model MODEL, or the key model in the config")
    return name


def _named_teacher(options: TrainOptions, config: TrainConfig, registry: Registry | None) -> str | None:
    """Return the teacher of a run that learns from one; refuse one that nobody listens to, and any other lack."""
    needs = needed_by(config, registry)
    name = options.teacher or config.teacher
    if "teacher" in needs and name is None:
        raise UsageError(
            f"{options.config}: the {needs['teacher']} needs a teacher, and none is named",
            hint="--teacher MODEL, or the key teacher in the config",
        )
    if "teacher" not in needs and options.teacher is not None:
        raise UsageError(f"{options.config}: nothing in it learns from a teacher in memory", hint="leave --teacher out")
    for need in sorted(needs.keys() - {f.name for f in dataclasses.fields(Resources)}):
        raise UsageError(f"{options.config}: the {needs[need]} needs a {need}, which a training run does not have")
    return name if "teacher" in needs else None


def _holds_anything(run_dir: Path) -> bool:
    """Whether there is anything but what a run leaves that was killed at once, or that is done."""
    if not run_dir.is_dir():
        return True
    ours = {LOCK_NAME, TENSORBOARD_FOLDER, WANDB_FOLDER, RECORD_NAME, CONFIG_NAME}
    return any(p.name not in ours and not p.name.endswith(".partial") for p in run_dir.iterdir())


def _check_allowed(keys: tuple[str, ...], config: TrainConfig) -> None:
    """Refuse to allow a change of what is no key.

    :raises UsageError: with the nearest key.
    """
    known = {_PROCESSES, *_keys(config.resolved())}
    for key in keys:
        if key not in known:
            raise UsageError(f"--allow-change {key}: the config has no such key", hint=did_you_mean(key, known))


def _keys(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        inner = f"{path}.{key}" if path else str(key)
        yield inner
        if isinstance(value, Mapping):
            yield from _keys(value, inner)


def _rows(job: _Job, resources: Resources) -> _Rows:
    """Make the rows; without ``data.eval``, some of the training rows are set aside.

    :raises UsageError: for a stream without ``data.eval``, or too few rows to set some aside.
    :raises BadInputError: when there are fewer rows to train on than a micro-batch has.
    """
    assert job.config.data is not None
    data: RowSource | RowStream = build("data", job.config.data.train, resources)
    digest = data.digest()
    if isinstance(data, TokenRows):
        data.check(int(job.model.config["vocab_size"]))
    evaluation: RowSource | None = None
    if job.config.data.eval is not None:
        held: RowSource | RowStream = build("data", job.config.data.eval, resources)
        if is_stream(held):
            raise UsageError("data.eval streams: it is to be rows by number", hint="streaming: false")
        evaluation, digest = held, f"{digest} {held.digest()}"
    train = job.config.train
    return _Rows(*held_out(data, evaluation, train.eval_rows, batch_rows=train.batch_rows), digest)


def _identity(job: _Job, rows: _Rows) -> str:
    """What a run depends on beside its config."""
    return identity_of(job.model.digest(), job.teacher.digest() if job.teacher is not None else "", rows.digest)


def _scores(model: Any, rows: RowSource, config: TrainConfig) -> Tensor:
    """Score the evaluation rows in full precision: ``[rows, 2]``, nats and tokens; each process has its share."""
    state = processes()
    place = device()
    model.to(place).eval()
    with torch.no_grad(), fast_attention([model], rows, None):
        sums = score_source(
            model, rows, batch_rows=config.train.batch_rows, device=place, process=state.process_index,
            processes=state.num_processes,
        )  # fmt: skip
    if state.num_processes > 1:
        shared = sums.to(place)
        torch.distributed.all_reduce(shared)
        sums = shared.cpu()
    return sums


def _report(
    options: TrainOptions, job: _Job, model: Any, trained: TrainResult, before: Tensor, after: Tensor
) -> TrainReport:
    counted = before[:, 1] > 0
    tokens = before[counted, 1].numpy()
    first, last = before[counted, 0].numpy(), after[counted, 0].numpy()
    return TrainReport(
        path=options.output,
        model=str(job.model.path),
        teacher=str(job.teacher.path) if job.teacher is not None else None,
        parameters=model.num_parameters(),
        eval_rows=len(tokens),
        eval_tokens=int(tokens.sum()),
        before=_perplexity(first, tokens),
        after=_perplexity(last, tokens),
        ratio=paired_ratio(first, last, tokens),
        curve=trained.curve,
        best_step=trained.best_step,
        best_eval_loss=trained.best_eval_loss,
        steps=trained.steps,
        skipped_steps=trained.skipped_steps,
        tokens=trained.tokens,
        seconds=trained.seconds,
        metrics=trained.metrics,
        run_dir=job.run_dir if options.keep_run or job.config.tracking is not None else None,
        config_sha256=job.config.digest(),
        config=job.config.resolved(),
    )


def _perplexity(nll: Any, tokens: Any) -> Estimate:
    return ratio_estimate(nll, tokens, np.exp)


def _leave(
    options: TrainOptions, job: _Job, model: Any, rows: _Rows, report: TrainReport, record: Mapping[str, Any]
) -> None:
    """Write the checkpoint, then clear away what only a run that goes on needs."""
    teacher = job.teacher
    lineage = {
        "teacher": {"name": teacher.name, "digest": teacher.digest()} if teacher is not None else None,
        "data_digest": rows.digest,
    }
    kept = (
        "eval_rows", "eval_tokens", "before", "after", "ratio", "curve", "best_step", "best_eval_loss", "steps",
        "skipped_steps", "tokens", "seconds", "metrics",
    )  # fmt: skip
    write_trained(
        options.output, model.cpu(), operation="train", parent=job.model, config=job.config, record=record,
        lineage=lineage, metrics={name: getattr(report, name) for name in kept}, overwrite=options.overwrite,
        teacher=teacher,
    )  # fmt: skip
    if not options.keep_run:
        _clear(job.run_dir, whole=options.run_dir is None and job.config.tracking is None)


def _clear(run_dir: Path, *, whole: bool) -> None:
    """Remove the saved states; what trackers wrote stays, and so does what somebody else put there."""
    if whole:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for state in run_dir.glob("checkpoint-*"):
        shutil.rmtree(state, ignore_errors=True)
    # The next run that is put there is another one, to W&B too.
    for name in (RUN_NAME, START_NAME, WANDB_PLACE_NAME):
        (run_dir / name).unlink(missing_ok=True)
