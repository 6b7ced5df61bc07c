"""The rows of a distillation: what is trained on, and what is measured on and never trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt import store
from apt.checkpoint.reader import Checkpoint
from apt.evaluation.splits import hold_out
from apt.evaluation.texts import Rows, Split, load_rows
from apt.plugins.optional.distillation.options import DistillOptions

#: Rows sampled or cut for training at most, when no number is given.
MOST_ROWS: Final = 4096
#: Rows that are sampled from a teacher when no number is given; they are gone through more than once.
SAMPLED_ROWS: Final = 512


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows by their use."""

    train: Rows
    heldout: Rows


def text_of(options: DistillOptions, teacher: Checkpoint) -> str:
    """Return the reference of the text, with the default filled in."""
    if options.text is not None:
        return options.text
    return "embedded" if teacher.path == store.embedded_path() else "self"


def load_texts(
    options: DistillOptions, teacher: Checkpoint, *, wanted: int, model: Any = None, context: int | None = None
) -> Texts:
    """Load or sample the rows.

    :param wanted: rows that the run can use.
    :param model: the teacher in memory; needed when rows are sampled from it.
    :param context: tokens that teacher and student have room for: no row is longer.
    :raises BadInputError: when a text is too short to be split.
    """
    text = text_of(options, teacher)
    most = options.train_rows or min(wanted, SAMPLED_ROWS if text == "self" else MOST_ROWS)
    if options.heldout is None and Path(text).suffix in (".txt", ".jsonl"):
        whole = _rows(options, teacher, text, "train", None, model, context)
        train, heldout = hold_out(whole, options.heldout_rows)
        return Texts(train.spread(most), heldout)
    return Texts(
        _rows(options, teacher, text, "train", most, model, context),
        load_heldout(options, teacher, model=model, context=context),
    )


def load_heldout(
    options: DistillOptions, teacher: Checkpoint, *, model: Any = None, context: int | None = None
) -> Rows:
    """Load or sample the rows that are measured on, where they are no part of the training text."""
    text = options.heldout or text_of(options, teacher)
    return _rows(options, teacher, text, "heldout", options.heldout_rows, model, context)


def _rows(
    options: DistillOptions, teacher: Checkpoint, ref: str, split: Split, limit: int | None, model: Any,
    context: int | None,
) -> Rows:  # fmt: skip
    window = options.row_tokens(context)
    return load_rows(ref, split=split, checkpoint=teacher, window=window, max_rows=limit, model=model)
