"""What a student is taught with: the rows, the teacher in memory or its cache, and the rows that are measured on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from apt.evaluation.texts import Rows
from apt.plugins.optional.distillation.caching import fill_cache
from apt.plugins.optional.distillation.options import DistillOptions
from apt.plugins.optional.distillation.pairs import Pair
from apt.plugins.optional.distillation.texts import load_heldout, load_texts, text_of
from apt.registry import Registry
from apt.training.components import build, needed_by, sections_of
from apt.training.config import TrainConfig
from apt.training.contract import Resources, RowSource, RowStream
from apt.training.data.rows import TokenRows, held_out
from apt.training.opening import rows_need_weights
from apt.training.runner import device
from apt.training.teachers.loading import load_teacher


@dataclass(frozen=True, slots=True)
class Lesson:
    """Everything but the student.

    :param evaluation: rows that the best checkpoint is chosen by; ``None`` to set some of ``rows`` aside.
    :param source: where the rows come from, for people.
    """

    rows: RowSource | RowStream
    evaluation: RowSource | None
    heldout: Rows
    source: str
    resources: Resources

    def digest(self) -> str:
        """Return the sha256 of the training rows."""
        return self.rows.digest()


def prepare(
    options: DistillOptions,
    config: TrainConfig,
    pair: Pair,
    student: Callable[[], Any],
    registry: Registry | None,
) -> Lesson:
    """Load or sample the rows, and load the teacher where it teaches itself.

    :param student: returns the model that data components know; called where they need one in memory only.
    :raises BadInputError: when a text is too short to be split, or has fewer rows than a micro-batch.
    """
    tokenizer = pair.student.tokenizer()
    model = student() if rows_need_weights(config, registry) else None
    resources = Resources(
        shared_vocab=pair.shared_vocab, tokenizer=tokenizer, model=model, registry=registry, context=pair.context
    )
    teaches = any(kind == "teacher" and section.name == "memory" for kind, section in sections_of(config))

    @functools.cache
    def teacher() -> Any:
        return load_teacher(pair.teacher, config, device())

    if config.data is not None and "teacher" in needed_by(config.data, registry):
        resources = replace(resources, teacher=teacher())
    rows, evaluation, heldout, source = _rows(options, config, pair, resources, teacher)
    if options.cache is not None:
        fill_cache(options.cache, rows, pair, teacher, top_k=options.cache_top_k)
    return Lesson(
        rows, evaluation, heldout, source,
        Resources(teacher=teacher() if teaches else None, shared_vocab=pair.shared_vocab, tokenizer=tokenizer),
    )  # fmt: skip


def _rows(
    options: DistillOptions, config: TrainConfig, pair: Pair, resources: Resources, teacher: Callable[[], Any]
) -> tuple[RowSource | RowStream, RowSource | None, Rows, str]:
    """Make the rows; too few of them are told before the teacher is loaded, where it need not write them itself."""
    train = config.train
    text = text_of(options, pair.teacher)
    if config.data is not None:
        rows: RowSource | RowStream = build("data", config.data.train, resources)
        evaluation = build("data", config.data.eval, resources) if config.data.eval is not None else None
        held_out(rows, evaluation, train.eval_rows, batch_rows=train.batch_rows)
        writer = teacher() if (options.heldout or text) == "self" else None
        heldout = load_heldout(options, pair.teacher, model=writer, context=pair.context)
        return rows, evaluation, heldout, f"data of {options.config}"
    wanted = train.steps * train.batch_rows * train.grad_accum + train.eval_rows
    writer = teacher() if "self" in (options.heldout, text) else None
    texts = load_texts(options, pair.teacher, wanted=wanted, model=writer, context=pair.context)
    source = TokenRows(texts.train.ids, texts.train.labels)
    source.check(min(int(c.config["vocab_size"]) for c in (pair.teacher, pair.student)))
    held_out(source, None, train.eval_rows, batch_rows=train.batch_rows)
    return source, None, texts.heldout, texts.train.source
