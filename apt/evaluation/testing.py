"""The tests of ``compare``: each figure of each model against the first's, on the same items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apt.evaluation.paired import paired_test
from apt.evaluation.results import FigureTest
from apt.evaluation.scoring import RowScores
from apt.evaluation.task_scoring import TaskScore

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

#: Of fewer documents than this, another tokenizer's figures have nothing to be paired by.
_FEWEST_DOCUMENTS = 10


@dataclass(frozen=True, slots=True)
class FirstFigures:
    """What the first model scored."""

    rows: "Rows"
    scores: RowScores
    tasks: tuple[TaskScore, ...]


def figure_tests(
    name: str, first: FirstFigures, rows: "Rows", scores: RowScores, tasks: Sequence[TaskScore]
) -> Iterator[FigureTest]:
    """Yield the tests of one model, not yet corrected for their number."""
    yield from _text_tests(name, first, rows, scores)
    for before, now in zip(first.tasks, tasks, strict=True):
        for a, b in zip(before.metrics, now.metrics, strict=True):
            if a.weights != b.weights:
                continue  # a perplexity per token of another tokenizer
            unit = "nats per token" if a.weights is not None else "share"
            test = paired_test(a.values, b.values, a.weights, sources=before.item_sources)
            yield FigureTest(name, f"{now.name}: {a.name.replace('_', ' ')}", unit, a.higher_is_better, test)


def _text_tests(name: str, first: FirstFigures, rows: "Rows", scores: RowScores) -> Iterator[FigureTest]:
    """Token by token where the tokens are the same, else document by document in bits per byte."""
    import numpy as np

    if rows.digest == first.rows.digest:
        test = paired_test(first.scores.nll, scores.nll, first.scores.tokens, sources=first.rows.clusters)
        yield FigureTest(name, "perplexity", "nats per token", False, test)
        return
    pair = [(first.rows, first.scores), (rows, scores)]
    sums = []
    for text, found in pair:
        if text.documents is None or text.row_bytes is None:
            return
        n = max(text.documents) + 1
        bits = np.bincount(text.documents, found.nll / np.log(2.0), n)
        sums.append((bits, np.bincount(text.documents, np.asarray(text.row_bytes, np.float64), n)))
    if len(sums[0][0]) != len(sums[1][0]) or len(sums[0][0]) < _FEWEST_DOCUMENTS or (sums[0][1] != sums[1][1]).any():
        return
    yield FigureTest(name, "bits per byte", "bits per byte", False, paired_test(sums[0][0], sums[1][0], sums[0][1]))
