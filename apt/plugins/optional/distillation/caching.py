"""A teacher that speaks once: its predictions for the rows, captured before the run and then read from disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apt.console.errors import UnsupportedError, UsageError
from apt.plugins.optional.distillation.pairs import Pair
from apt.training.components import sections_of
from apt.training.config import TrainConfig
from apt.training.contract import RowSource, RowStream
from apt.training.data.files import fingerprint
from apt.training.data.rows import is_stream
from apt.training.teachers import capture as capturing
from apt.training.teachers.manifest import Manifest


def check_cache(directory: Path, config: TrainConfig) -> None:
    """Refuse a cache that the run would not learn from, and a path that is no directory.

    :raises UsageError: saying what is wrong with it, or what the config lacks.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is no directory: the cache needs one", hint="choose another path")
    paths = [str(getattr(s, "path", "")) for kind, s in sections_of(config) if (kind, s.name) == ("teacher", "cache")]
    if str(directory) not in paths:
        raise UsageError(
            f"the config does not learn from the cache {directory}",
            hint=f"train.loss.teacher: {{name: cache, path: {directory}}}",
        )


def fill_cache(
    directory: Path, rows: RowSource | RowStream, pair: Pair, load: Callable[[], Any], *, top_k: int | None = None
) -> None:
    """Capture the teacher's predictions for the rows, unless the directory holds them already.

    What an interruption left is gone on with.

    :param load: returns the teacher; called when something is to be captured only.
    :param top_k: ids of each token that are kept; the capture's own default when absent.
    :raises UsageError: for rows that have no numbers, a directory that holds something else, or another ``top_k``.
    :raises UnsupportedError: for a cache of another teacher.
    """
    if is_stream(rows):
        raise UsageError("a stream of rows has no end to be captured", hint="streaming: false, or no cache")
    if capturing.is_captured(directory):
        captured = Manifest.read(directory).plan
        if captured.teacher != pair.teacher.digest():
            raise UnsupportedError(
                f"{directory} was captured from another teacher than {pair.teacher.name}",
                hint="choose another directory",
            )
        if top_k is not None and captured.k != min(top_k, captured.vocabulary):
            raise UsageError(
                f"{directory} was captured with {captured.k} ids a token, not {top_k}",
                hint="leave cache_top_k out or choose another directory",
            )
        return
    kept = capturing.CaptureOptions()
    if top_k is not None:
        kept = kept.model_copy(update={"k": top_k})
    capturing.capture(
        load(), rows, directory, kept,
        teacher=pair.teacher.digest(), tokenizer=fingerprint(pair.student.tokenizer()), shared_vocab=pair.shared_vocab,
    )  # fmt: skip
