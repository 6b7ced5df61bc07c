"""The rows of a distillation: what is trained on, and what is measured on and never trained on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt import store
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError
from apt.evaluation.texts import Rows, load_rows
from apt.plugins.optional.distillation.options import DistillOptions

#: Rows sampled or cut for training at most, when no number is given.
MOST_ROWS: Final = 4096
#: Rows that are sampled from a teacher when no number is given; they are gone through more than once.
SAMPLED_ROWS: Final = 512
#: Of a plain text file without a held-out text beside it, this share of the rows is measured on.
HELDOUT_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows by their use."""

    train: Rows
    heldout: Rows

    def digest(self) -> str:
        """Return the sha256 of the training rows."""
        held = hashlib.sha256()
        for tensor in (self.train.ids, self.train.labels):
            held.update(str(tuple(tensor.shape)).encode())
            held.update(tensor.numpy().tobytes())
        return held.hexdigest()


def text_of(options: DistillOptions, teacher: Checkpoint) -> str:
    """Return the reference of the text, with the default filled in."""
    if options.text is not None:
        return options.text
    return "embedded" if teacher.path == store.embedded_path() else "self"


def load_texts(options: DistillOptions, teacher: Checkpoint, *, steps: int, model: Any = None) -> Texts:
    """Load or sample the rows.

    :param model: the teacher in memory; needed when rows are sampled from it.
    :raises BadInputError: when a text is too short to be split.
    """
    text = text_of(options, teacher)
    window = min(options.window, int(teacher.config.get("max_position_embeddings", options.window)))
    wanted = steps * options.batch_rows * options.grad_accum + options.eval_rows
    most = options.train_rows or min(wanted, SAMPLED_ROWS if text == "self" else MOST_ROWS)

    def rows(ref: str, split: Any, limit: int | None) -> Rows:
        return load_rows(ref, split=split, checkpoint=teacher, window=window, max_rows=limit, model=model)

    if options.heldout is None and Path(text).suffix in (".txt", ".jsonl"):
        return _split(rows(text, "train", None), most, options.heldout_rows)
    heldout = rows(options.heldout or text, "heldout", options.heldout_rows)
    return Texts(rows(text, "train", most), heldout)


def _split(whole: Rows, most: int, heldout_rows: int) -> Texts:
    """Cut the last tenth of a text off, so that nothing is measured on what was trained on."""
    n = len(whole)
    cut = n - max(1, int(n * HELDOUT_SHARE))
    if cut < 2:
        raise BadInputError(f"the text {whole.source!r} has {n} rows: too few to train and measure on")
    train = whole.take(list(range(cut))).spread(most)
    return Texts(train, whole.take(list(range(cut, n))).spread(heldout_rows))
