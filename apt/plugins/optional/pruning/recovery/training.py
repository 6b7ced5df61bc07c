"""Recovery: a pruned model is drawn back to its dense parent by distillation, in the shared training runner.

What recovers is a recipe: a training config as ``apt_model train`` takes it. Student, teacher and output are filled in
from the pruning, and so is the text where the recipe names none. Zeros of a masked model stay zeros.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from apt.checkpoint.atomic import check_target
from apt.checkpoint.reader import Checkpoint
from apt.console import output as console
from apt.console.errors import CheckFailedError, NotFoundError, UnsupportedError
from apt.evaluation.statistics import ratio_estimate
from apt.evaluation.texts import rows_from_ids, save_rows, shared_context
from apt.plugins.host import current
from apt.plugins.optional.pruning.masks.weights import linear_weights
from apt.plugins.optional.pruning.masks.zeros import KeepZeros, zero_share, zeros_of
from apt.plugins.optional.pruning.recovery.result import RecoveryResult
from apt.registry import Registry
from apt.training import catalog
from apt.training.attention import fast_attention
from apt.training.components import build, needed_by
from apt.training.config import DataConfig, TrainConfig, read_config
from apt.training.contract import Resources, RowSource, RowStream
from apt.training.data.rows import TokenRows, held_out, is_stream
from apt.training.data.text import TextOptions
from apt.training.evaluation import score_source
from apt.training.opening import open_trainable, tokenizer_of
from apt.training.output import round_weights, sources_of, write_trained
from apt.training.result import TrainResult
from apt.training.run_directory import held_steps, identity_of
from apt.training.runner import device, run
from apt.training.teachers.loading import load_teacher, teacher_dtype

#: Where the shipped recipes are, among the shipped configs.
_GROUP: Final = "recover"
#: Rows of a text that no recipe names, at most; of a text that has to be sampled first, fewer.
_MOST_ROWS: Final = 4096
_SAMPLED_ROWS: Final = 1024
#: Ways of training in which the weights that are stored are the weights that are trained.
_IN_PLACE: Final = ("full", "frozen")


@dataclass(frozen=True)
class Recovery:
    """What is to be recovered, and with what.

    :param pruned: the directory of the pruned checkpoint; it is not changed.
    :param parent: the dense model that it was cut from, by any reference.
    :param recipe: a YAML file, or the name of a shipped config; ``kd`` is short for ``recover/kd``.
    :param output: where the recovered checkpoint appears, whole, when all is done.
    :param work: a directory for the state of the run: the same call goes on from it after a kill, and removes it when
        it is done.
    :param calibration: the text that the pruning was calibrated on; trained on where neither ``text`` nor the recipe
        names one. For ``self``, rows are sampled from the dense parent.
    :param text: what to train on in place of what the recipe names: embedded, self, or a file.
    :param lineage: what else is to be told of the checkpoint in its ``apt.json``; ``metrics`` likewise.
    """

    pruned: Path
    parent: str
    recipe: str
    output: Path
    work: Path
    calibration: str = "self"
    text: str | None = None
    overwrite: bool = False
    lineage: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Lesson:
    """What is trained on.

    :param evaluation: rows that the best weights are chosen by and that the figures are of; never trained on.
    """

    rows: RowSource | RowStream
    evaluation: RowSource
    resources: Resources
    digest: str


def find_recipe(ref: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped config, whose folder ``recover`` may be left out.

    :raises NotFoundError: with the nearest shipped name.
    """
    try:
        return catalog.find(f"{_GROUP}/{ref}" if f"{_GROUP}/{ref}" in catalog.shipped() else ref)
    except NotFoundError as error:
        raise NotFoundError(f"no recipe {ref!r}: neither a file nor shipped", hint=error.hint) from None


def recovery_config(
    recipe: str, *, calibration: str = "self", text: str | None = None, registry: Registry | None = None
) -> TrainConfig:
    """Return the training config of a recovery, its text filled in; nothing but the recipe is read.

    :raises NotFoundError: when there is no such recipe.
    :raises DocumentError: for a recipe with faults, each with file and line.
    """
    config = read_config(find_recipe(recipe), registry or current().registry())
    if text is None and config.data is not None:
        return config
    train = config.train
    wanted = train.steps * train.batch_rows * train.grad_accum + train.eval_rows
    ref = text if text is not None else calibration
    most = _SAMPLED_ROWS if ref == "self" else _MOST_ROWS
    path = "teacher" if ref == "self" else ref
    section = TextOptions(path=path, split=_split_of(path), max_rows=min(wanted, most))
    return config.model_copy(update={"data": DataConfig(train=section)})


def _split_of(ref: str) -> Any:
    """Of a file of token rows without a training split, what the pruning was calibrated on is trained on."""
    if Path(ref).suffix != ".npz":
        return "train"
    try:
        with np.load(ref, allow_pickle=False) as archive:
            return "train" if "train" in archive.files else "calibration"
    except (OSError, ValueError):
        return "train"  # whoever reads the rows tells what is wrong with the file


def recover(task: Recovery, registry: Registry | None = None) -> RecoveryResult:
    """Train a pruned model on its parent's predictions and write its best weights in its own dtype.

    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    :raises UnsupportedError: for a masked model and a recipe that does not train its weights in place.
    :raises CheckFailedError: when a weight of the mask did not stay zero; nothing is written then.
    """
    begun, cpu = time.monotonic(), time.process_time()
    registry = registry or current().registry()
    config = recovery_config(task.recipe, calibration=task.calibration, text=task.text, registry=registry)
    pruned, parent = open_trainable(str(task.pruned)), open_trainable(task.parent)
    check_target(task.output, overwrite=task.overwrite, sources=sources_of(pruned, parent))
    context = shared_context([pruned.config, parent.config])
    config = _within(config.model_copy(update={"model": None, "teacher": task.parent}), context)
    teacher = load_teacher(parent, config, device())
    model: Any = pruned.load(dtype=torch.float32)
    lesson = _lesson(task, config, pruned, parent, model, teacher, registry)
    weights = [matrix.weight for matrix in linear_weights(model, pruned.architecture)]
    before_zeros, dead = zero_share(weights), zeros_of(weights)
    if dead:
        check_in_place(config)
    before = _scores(model, lesson, config)
    trained = _trained(task, config, model, pruned, parent, lesson, KeepZeros(dead), registry)
    round_weights(model, pruned.stored_dtype)
    after_zeros = zero_share(weights)
    if not all(bool((weight.detach().cpu()[mask] == 0).all()) for weight, mask in dead.items()):
        raise CheckFailedError(f"{task.pruned}: zeros of the mask did not stay zeros; nothing was written")
    result = RecoveryResult(
        path=task.output,
        recipe=task.recipe,
        text=_told(config, lesson),
        rows=None if is_stream(lesson.rows) else len(lesson.rows),
        steps=trained.steps,
        best_step=trained.best_step,
        tokens=trained.tokens,
        eval_tokens=int(before[:, 1].sum()),
        perplexity_parent=_perplexity(_scores(teacher, lesson, config)),
        perplexity_before=_perplexity(before),
        perplexity_after=_perplexity(_scores(model, lesson, config)),
        zero_share_before=before_zeros,
        zero_share_after=after_zeros,
        curve=trained.curve,
        seconds=time.monotonic() - begun,
        cpu_seconds=time.process_time() - cpu,
        config=config.resolved(),
    )
    _leave(task, config, model, pruned, parent, lesson, result, trained.record)
    return result


def check_in_place(config: TrainConfig) -> None:
    """Refuse a recipe under which the zeros of a mask would not stay zeros.

    :raises UnsupportedError: naming the settings that hold them.
    """
    if config.train.tuning.name not in _IN_PLACE or config.train.sharding != "none":
        raise UnsupportedError(
            "zeros are held in weights that are trained themselves, on one device",
            hint="train.tuning full or frozen, train.sharding none",
        )


def _within(config: TrainConfig, context: int | None) -> TrainConfig:
    """Lower the windows of a recipe to the context of the models: it was written for any model."""
    if config.data is None or context is None:
        return config
    changes: dict[str, Any] = {}
    for name in ("train", "eval"):
        section = getattr(config.data, name)
        window = getattr(section, "window", None)
        if isinstance(window, int) and window > context:
            console.note(f"data.{name}.window: {window} tokens lowered to {context}, the context of the models")
            changes[name] = section.model_copy(update={"window": context})
    return config.model_copy(update={"data": config.data.model_copy(update=changes)}) if changes else config


def _lesson(
    task: Recovery, config: TrainConfig, pruned: Checkpoint, parent: Checkpoint, model: Any, teacher: Any,
    registry: Registry,
) -> _Lesson:  # fmt: skip
    """Make the rows, or sample them, and set aside what is evaluated on."""
    assert config.data is not None
    # The vocabulary is never cut: the same ids mean the same to both.
    resources = Resources(
        teacher=teacher, tokenizer=tokenizer_of(pruned), model=model, registry=registry,
        context=shared_context([pruned.config, parent.config]),
    )  # fmt: skip
    rows: RowSource | RowStream = _rows(task, config, config.data.train, parent, resources)
    if isinstance(rows, TokenRows):
        rows.check(int(pruned.config["vocab_size"]))
    digest, evaluation = rows.digest(), None
    if config.data.eval is not None:
        evaluation = _rows(task, config, config.data.eval, parent, resources)
        digest = f"{digest} {evaluation.digest()}"
    training, held = held_out(rows, evaluation, config.train.eval_rows, batch_rows=config.train.batch_rows)
    if "teacher" not in needed_by(config.train, registry):
        resources = Resources(tokenizer=resources.tokenizer)
    return _Lesson(training, held, resources, digest)


def _rows(task: Recovery, config: TrainConfig, section: Any, parent: Checkpoint, resources: Resources) -> Any:
    """Make rows of a section; what the parent writes is kept, so that a call that goes on need not sample it again."""
    if not isinstance(section, TextOptions) or section.path != "teacher":
        return build("data", section, resources)
    dtype = teacher_dtype(config, device())
    asked = json.dumps([section.model_dump(mode="json"), parent.digest(), str(dtype)])
    kept = task.work / f"text-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"
    if not kept.exists():
        ids = build("data", section, resources).ids
        task.work.mkdir(parents=True, exist_ok=True)
        save_rows({section.split: rows_from_ids(ids, source=parent.name, sampled=True)}, kept)
    return build("data", section.model_copy(update={"path": str(kept)}), resources)


def _trained(
    task: Recovery, config: TrainConfig, model: Any, pruned: Checkpoint, parent: Checkpoint, lesson: _Lesson,
    zeros: KeepZeros, registry: Registry,
) -> TrainResult:  # fmt: skip
    identity = identity_of(parent.digest(), pruned.digest(), lesson.digest)
    run_dir = task.work / "run"
    if run_dir.exists() and held_steps(run_dir, config, identity) != config.train.steps:
        console.note(f"{run_dir} is of another run and begins anew")
        shutil.rmtree(run_dir)
    return run(
        config, model, lesson.rows, evaluation=lesson.evaluation, run_dir=run_dir, identity=identity,
        resources=lesson.resources, registry=registry, callbacks=(zeros,), label="recovering",
        name=task.output.absolute().name,
    )  # fmt: skip


def _scores(model: Any, lesson: _Lesson, config: TrainConfig) -> torch.Tensor:
    """Score the rows set aside: ``[rows, 2]``, nats and tokens."""
    place = device()
    model.to(place).eval()
    with torch.no_grad(), fast_attention([model], lesson.evaluation, None):
        return score_source(model, lesson.evaluation, batch_rows=config.train.batch_rows, device=place)


def _perplexity(scores: torch.Tensor) -> Any:
    counted = scores[scores[:, 1] > 0].numpy()
    return ratio_estimate(counted[:, 0], counted[:, 1], np.exp)


def _told(config: TrainConfig, lesson: _Lesson) -> str:
    """Say in words what was trained on."""
    assert config.data is not None
    section = config.data.train
    if isinstance(section, TextOptions):
        if section.path == "teacher":
            return f"sampled from the dense parent, split {section.split}"
        return ", ".join(section.path) if isinstance(section.path, list) else f"{section.path} ({section.split})"
    return f"data {section.name} of the recipe"


def _leave(
    task: Recovery, config: TrainConfig, model: Any, pruned: Checkpoint, parent: Checkpoint, lesson: _Lesson,
    result: RecoveryResult, record: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the checkpoint, then clear away what only a run that goes on needs."""
    lineage = {
        "recipe": task.recipe,
        "teacher": {"name": parent.name, "digest": parent.digest()},
        "text": result.text,
        "data_digest": lesson.digest,
        **task.lineage,
    }
    kept = (
        "rows", "steps", "best_step", "tokens", "eval_tokens", "perplexity_parent", "perplexity_before",
        "perplexity_after", "zero_share_before", "zero_share_after", "curve",
    )  # fmt: skip
    metrics = {**task.metrics, "recovery": {name: getattr(result, name) for name in kept}}
    write_trained(
        task.output, model.cpu(), operation="recover", parent=pruned, config=config, lineage=lineage, metrics=metrics,
        overwrite=task.overwrite, teacher=parent, record=record,
    )  # fmt: skip
    shutil.rmtree(task.work, ignore_errors=True)
