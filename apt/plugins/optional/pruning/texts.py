"""The rows of a pruning: what is fitted on, and what is measured on and never fitted on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt import store
from apt.checkpoint.reader import Checkpoint
from apt.evaluation.splits import has_split, hold_out
from apt.evaluation.texts import Rows, Split, load_rows, save_rows, window_of
from apt.plugins.optional.pruning.options import PruneOptions


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows by their use."""

    calibration: Rows
    heldout: Rows


def text_of(options: PruneOptions, checkpoint: Checkpoint) -> str:
    """Return the reference of the calibration text, with the default filled in."""
    if options.calibration is not None:
        return options.calibration
    return "embedded" if options.stream or checkpoint.path == store.embedded_path() else "self"


def load_texts(options: PruneOptions, checkpoint: Checkpoint, model: Any = None) -> Texts:
    """Load or sample the rows: at most about ``options.tokens`` to fit on, and at most as many to measure on.

    :param model: the model in memory; needed when rows are sampled from it.
    :raises BadInputError: when a text is too short to be split.
    """
    text = text_of(options, checkpoint)
    heldout = text if options.heldout is None else options.heldout
    if heldout == text and not has_split(text, "heldout"):
        whole = load_rows(text, split="calibration", checkpoint=checkpoint, model=model)
        calibration, held = hold_out(whole, options.heldout_rows)
        return Texts(_limited(calibration, options.tokens), _limited(held, options.tokens))
    return Texts(
        _rows(text, "calibration", checkpoint, options.tokens, None, model),
        _rows(heldout, "heldout", checkpoint, options.tokens, options.heldout_rows, model),
    )


def training_text(options: PruneOptions, checkpoint: Checkpoint, directory: Path) -> str:
    """Return a text to train on that holds none of the rows that are measured on.

    :param directory: where the rows before the held-out ones are put down, for a file that is cut in two.
    """
    text = text_of(options, checkpoint)
    if has_split(text, "heldout") or (options.heldout is not None and options.heldout != text):
        return text
    path = directory / "text.npz"
    whole = load_rows(text, split="calibration", checkpoint=checkpoint)
    save_rows({"train": hold_out(whole, options.heldout_rows)[0]}, path, overwrite=True)
    return str(path)


def _rows(text: str, split: Split, checkpoint: Checkpoint, tokens: int, most: int | None, model: Any) -> Rows:
    """Return rows of a text, spread over it, of at most about ``tokens`` tokens."""
    window = window_of(checkpoint)
    count = _count(window, tokens, most)
    rows = load_rows(text, split=split, checkpoint=checkpoint, max_rows=count, model=model)
    width = rows.ids.shape[1]
    if width < window and (more := _count(width, tokens, most)) > count:  # shorter rows than expected
        rows = load_rows(text, split=split, checkpoint=checkpoint, max_rows=more, model=model)
    return rows


def _limited(rows: Rows, tokens: int) -> Rows:
    return rows.spread(_count(rows.ids.shape[1], tokens, None))


def _count(width: int, tokens: int, most: int | None) -> int:
    count = max(2, tokens // width)
    return count if most is None else min(count, most)
