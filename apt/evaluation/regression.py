"""``test --baseline``: is a figure worse than in an earlier result, by more than noise?

Figures of the same items are compared item by item; those of the same text or task with other items, by their standard
errors. All comparisons of one call are one family (Holm). A check that was passed before and is not now is a regression
by itself.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apt.console.errors import BadInputError, NotFoundError
from apt.console.table import Table
from apt.evaluation.distributions import NORMAL
from apt.evaluation.paired import PairedTest, holm, paired_test
from apt.evaluation.statistics import ALPHA

if TYPE_CHECKING:
    from apt.evaluation.results import TestResult, TextScore
    from apt.evaluation.task_scoring import TaskMetric, TaskScore

#: Nats per token that two runs of one model may differ by: other numbers of threads, other versions of a library.
NOISE_NATS: Final = 1e-4


@dataclass(frozen=True, slots=True)
class FigureChange:
    """One figure against the baseline's.

    :param change: now less then; of perplexities, of their logarithm (nats per token).
    :param paired: whether the same items were compared one by one.
    :param p: two-sided, corrected for all figures of the call.
    :param worse: by more than noise: ``p`` under 5 %, and beyond what one model differs by from run to run.
    """

    figure: str
    before: float
    now: float
    change: float
    paired: bool
    p: float
    worse: bool


@dataclass(frozen=True, slots=True)
class Regression:
    """A result against an earlier one.

    :param failed: checks that were passed then and are not now.
    :param left_out: figures that cannot be compared, with the reason.
    """

    baseline: Path
    name: str
    changes: tuple[FigureChange, ...]
    failed: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def fell(self) -> tuple[str, ...]:
        """What is worse than in the baseline."""
        return (*self.failed, *(c.figure for c in self.changes if c.worse))

    def table(self) -> Table:
        """The figures then and now, and what could not be compared."""
        rows = [
            [
                c.figure,
                f"{c.before:.4f}",
                f"{c.now:.4f}",
                "item by item" if c.paired else "by standard errors",
                f"{c.p:.3g}",
                "WORSE" if c.worse else "ok",
            ]
            for c in self.changes
        ]
        rows += [[name, "passed", "FAILED", "", "", "WORSE"] for name in self.failed]
        rows += [[told, "", "", "", "", "not compared"] for told in self.left_out]
        title = f"Against {self.baseline}" + (f" ({self.name})" if self.name else "")
        return Table(title, ("figure", "then", "now", "compared", "p (Holm)", "result"), rows)


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure of a result, as JSON holds it."""

    value: float
    error: float
    digest: str
    higher_is_better: bool
    log: bool
    values: tuple[float, ...]
    weights: tuple[float, ...] | None
    sources: tuple[str, ...] | tuple[int, ...] | None


def read_baseline(path: Path) -> dict[str, Any]:
    """Read what ``apt_model test --json`` wrote.

    :raises NotFoundError: when there is no such file; :raises BadInputError: when it is something else.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no such baseline: {path}", hint="apt_model test MODEL --json > baseline.json") from None
    except (ValueError, IsADirectoryError, RecursionError):
        raise BadInputError(f"{path}: not JSON", hint="apt_model test MODEL --json > baseline.json") from None
    if not isinstance(value, dict) or not isinstance(value.get("checks"), list):
        raise BadInputError(f"{path}: not a result of apt_model test", hint="apt_model test MODEL --json > FILE")
    return value


def against_baseline(result: "TestResult", baseline: Mapping[str, Any], path: Path) -> Regression:
    """Compare a result with an earlier one.

    :raises BadInputError: when the earlier one lacks a field that it must have, or nothing can be compared.
    """
    try:
        before = dict(_figures_of_json(baseline))
        passed = {str(c["name"]) for c in baseline["checks"] if c["passed"]}
        name = str(baseline.get("name", ""))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"{path}: a field of the result is missing or wrong: {error}") from None
    now = dict(_figures_of(result))
    left_out = [f"{n}: only in the baseline" for n in before if n not in now]
    left_out += [f"{n}: not in the baseline" for n in now if n not in before]
    compared = [(n, *_compared(before[n], now[n])) for n in now if n in before]
    changes = []
    for (figure, change, paired, _), p in zip(compared, holm([c[3] for c in compared]), strict=True):
        old, new = before[figure], now[figure]
        worse = change < 0 if new.higher_is_better else change > (NOISE_NATS if new.log else 0.0)
        changes.append(FigureChange(figure, old.value, new.value, change, paired, p, worse and p < ALPHA))
    failed = tuple(c.name for c in result.checks if not c.passed and c.name in passed)
    if not changes and not passed:
        raise BadInputError(f"{path}: has no figure and no passed check to compare with")
    return Regression(path, name, tuple(changes), failed, tuple(left_out))


def _compared(before: _Figure, now: _Figure) -> tuple[float, bool, float]:
    """Return the change, whether it was paired, and its p value."""
    if before.digest == now.digest and len(before.values) == len(now.values) and before.weights == now.weights:
        test: PairedTest = paired_test(before.values, now.values, now.weights, sources=now.sources)
        return test.difference.value, True, test.p
    values = [math.log(f.value) if f.log and f.value > 0 else f.value for f in (before, now)]
    change, error = values[1] - values[0], math.hypot(before.error, now.error)
    if not math.isfinite(error) or not error:
        return change, False, 1.0 if not change or not math.isfinite(error) else 0.0
    return change, False, 2 * NORMAL.cdf(-abs(change) / error)


def _figures_of(result: "TestResult") -> Iterator[tuple[str, _Figure]]:
    if result.score is not None:
        yield f"perplexity on {result.score.source}", _of_text(result.score)
    for task in result.tasks:
        for metric in task.metrics:
            yield f"{task.name}: {metric.name}", _of_metric(task, metric)


def _of_text(score: "TextScore") -> _Figure:
    weights = tuple(map(float, score.row_tokens))
    return _Figure(
        score.perplexity.value, score.standard_error, score.digest, False, True, score.row_nll, weights, score.sources
    )


def _of_metric(task: "TaskScore", metric: "TaskMetric") -> _Figure:
    return _Figure(
        metric.estimate.value, metric.standard_error, task.digest, metric.higher_is_better,
        metric.name == "perplexity", metric.values, metric.weights, task.item_sources,
    )  # fmt: skip


def _figures_of_json(value: Mapping[str, Any]) -> Iterator[tuple[str, _Figure]]:
    def numbers(found: Any) -> tuple[float, ...]:
        return tuple(math.nan if x is None else float(x) for x in found)

    score = value.get("score")
    if score is not None:
        yield (
            f"perplexity on {score['source']}",
            _Figure(
                _number(score["perplexity"]["value"]), _number(score["standard_error"]), str(score["digest"]), False,
                True, numbers(score["row_nll"]), numbers(score["row_tokens"]), None,
            ),
        )  # fmt: skip
    for task in value.get("tasks", ()):
        for metric in task["metrics"]:
            weights = metric["weights"]
            yield (
                f"{task['name']}: {metric['name']}",
                _Figure(
                    _number(metric["estimate"]["value"]), _number(metric["standard_error"]), str(task["digest"]),
                    bool(metric["higher_is_better"]), metric["name"] == "perplexity", numbers(metric["values"]),
                    None if weights is None else numbers(weights), None,
                ),
            )  # fmt: skip


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
