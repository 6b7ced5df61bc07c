"""Intervals for figures that are means or ratios of sums over rows: perplexity, bits per byte, divergence, accuracy.

Rows (windows of text) and items are the units that are resampled, never tokens: neighbouring tokens depend on one
another. Where units share a source (a document, a passage), the sources are resampled whole. Percentile bootstrap
(B. Efron 1979) with a fixed seed, so that the same scores give the same interval; the percentiles are widened for the
number of units as T. Hesterberg (2015, arXiv:1411.5279, "expanded percentile interval") does, since the plain ones are
too narrow for few of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.evaluation.distributions import NORMAL, student_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES: Final = 10_000
SEED: Final = 20_260_101
#: Two-sided level of every interval and test.
ALPHA: Final = 0.05
#: Indices drawn at a time; bounds the memory at 24 MB whatever the number of rows.
_CHUNK: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured figure with its 95 % interval over rows; infinite both ways where one unit tells no spread."""

    value: float
    low: float
    high: float

    def format(self, digits: int = 3) -> str:
        """Return ``value [low, high]`` for a table; ``-`` for what there is none of (one row has no interval)."""
        if not math.isfinite(self.value):
            return "-"
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{self.value:.{digits}f} [-]"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def resample_sums(columns: "NDArray[Any]", *, resamples: int = RESAMPLES, seed: int = SEED) -> "NDArray[Any]":
    """Draw rows with replacement and sum them.

    :param columns: float64 ``[rows, k]``.
    :returns: float64 ``[resamples, k]``; the same seed draws the same rows, which is what pairs two models.
    """
    import numpy as np

    rows = len(columns)
    generator = np.random.default_rng(seed)
    out = np.empty((resamples, columns.shape[1]))
    step = max(1, _CHUNK // rows)
    for begin in range(0, resamples, step):
        n = min(step, resamples - begin)
        drawn = generator.integers(0, rows, size=(n, rows), dtype=np.int32)
        for k in range(columns.shape[1]):
            column = columns[:, k]
            alike = bool((column == column[0]).all())  # a mean's denominator: nothing to draw
            out[begin : begin + n, k] = column[0] * rows if alike else column.take(drawn).sum(axis=1)
    return out


def sum_by_source(columns: "NDArray[Any]", sources: "Sequence[Any] | None") -> "NDArray[Any]":
    """Sum the rows that share a source, so that what is resampled is independent.

    :param columns: float64 ``[rows, k]``.
    :param sources: one name or number a row; every row by itself when absent.
    :returns: float64 ``[sources, k]``.
    """
    import numpy as np

    if sources is None:
        return columns
    _, group = np.unique(np.asarray(sources), return_inverse=True)
    return np.stack([np.bincount(group, columns[:, k]) for k in range(columns.shape[1])], axis=1)


def expanded_levels(units: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the percentiles of the bootstrap distribution that make a two-sided interval over so many units."""
    if units < 2:
        return alpha / 2, 1 - alpha / 2
    wide = student_quantile(1 - alpha / 2, units - 1) * math.sqrt(units / (units - 1))
    return NORMAL.cdf(-wide), NORMAL.cdf(wide)


def ratio_estimate(
    numerator: "NDArray[Any]",
    denominator: "NDArray[Any]",
    transform: "Callable[[Any], Any] | None" = None,
    *,
    sources: "Sequence[Any] | None" = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Estimate ``transform(sum(numerator) / sum(denominator))`` with a bootstrap over rows, or over their sources.

    :param numerator: float64 ``[rows]``; ``denominator`` alike and not all zero.
    :param transform: a monotone numpy function, ``numpy.exp`` for perplexity; identity when absent.
    :raises ValueError: without rows or with an empty denominator.
    """
    import numpy as np

    columns = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], axis=1)
    if not len(columns) or columns[:, 1].sum() <= 0:
        raise ValueError("no rows to estimate from")
    apply = transform or (lambda x: x)
    total = columns.sum(axis=0)
    value = float(apply(total[0] / total[1]))
    if not math.isfinite(value):
        return Estimate(value, value, value)
    units = sum_by_source(columns, sources)
    if len(units) < 2:  # nothing to estimate a spread from
        return Estimate(value, -math.inf, math.inf)
    sums = resample_sums(units, resamples=resamples, seed=seed)
    sums = sums[sums[:, 1] > 0]
    low, high = np.quantile(apply(sums[:, 0] / sums[:, 1]), expanded_levels(len(units)))
    return Estimate(value, float(low), float(high))


def paired_ratio(
    first: "NDArray[Any]",
    second: "NDArray[Any]",
    weights: "NDArray[Any]",
    *,
    sources: "Sequence[Any] | None" = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Ratio of two perplexities on the same rows, ``exp(mean(second - first))``, by a paired bootstrap.

    :param first: float64 ``[rows]``, summed negative log-likelihoods of the one model; ``second`` of the other.
    :param weights: float64 ``[rows]``, counted tokens.
    :returns: above 1 means that the second model is worse; an interval without 1 means that it is so beyond chance.
    """
    import numpy as np

    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return ratio_estimate(difference, weights, np.exp, sources=sources, resamples=resamples, seed=seed)


def standard_error(
    numerator: "NDArray[Any]", denominator: "NDArray[Any] | None" = None, sources: "Sequence[Any] | None" = None
) -> float:
    """Standard error of ``sum(numerator) / sum(denominator)``, clustered by source.

    The delta method on sums of sources with the factor ``units / (units - 1)``; for means of items it is the clustered
    standard error of E. Miller (2024, arXiv:2411.00640). NaN for fewer than two units.

    :param denominator: ones, for a mean, when absent.
    """
    import numpy as np

    top = np.asarray(numerator, np.float64)
    bottom = np.ones(len(top)) if denominator is None else np.asarray(denominator, np.float64)
    units = sum_by_source(np.stack([top, bottom], axis=1), sources)
    if len(units) < 2:
        return math.nan
    total = units.sum(axis=0)
    residuals = units[:, 0] - total[0] / total[1] * units[:, 1]
    return float(math.sqrt(len(units) / (len(units) - 1) * (residuals**2).sum()) / total[1])


def mean_estimate(values: "NDArray[Any]", sources: "Sequence[Any] | None" = None) -> Estimate:
    """Mean of items with its 95 % interval.

    Shares of independent items get E. B. Wilson's interval (1927), which also holds near 0 and 1; other means, and
    items that share sources, Student's t on the clustered standard error.

    :param values: float64 ``[items]``.
    """
    import numpy as np

    found = np.asarray(values, np.float64)
    n, mean = len(found), float(np.mean(found))
    if sources is None and np.isin(found, (0.0, 1.0)).all():
        z = NORMAL.inv_cdf(1 - ALPHA / 2)
        middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return Estimate(mean, max(0.0, middle - half), min(1.0, middle + half))
    units = n if sources is None else len(set(sources))
    if units < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = student_quantile(1 - ALPHA / 2, units - 1) * standard_error(found, None, sources)
    return Estimate(mean, mean - half, mean + half)


def median_estimate(values: "NDArray[Any] | Sequence[float]", alpha: float = ALPHA) -> Estimate:
    """Median of independent measurements with its distribution-free interval, between two of them by rank.

    The chance that the median lies outside is at most ``alpha``, whatever the distribution; fewer than six
    measurements tell no interval at the level of 5 %.

    :param values: at least one.
    """
    ordered = sorted(float(v) for v in values)
    n = len(ordered)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    outside, rank = 0.0, 0  # the ranks from below that may be left out
    while rank < n // 2:
        outside += math.comb(n, rank) / 2**n
        if 2 * outside > alpha:
            break
        rank += 1
    if rank == 0:
        return Estimate(middle, -math.inf, math.inf)
    return Estimate(middle, ordered[rank - 1], ordered[n - rank])
