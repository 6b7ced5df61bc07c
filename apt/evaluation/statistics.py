"""Intervals for figures that are ratios of sums over rows: perplexity, bits per byte, mean divergence.

Rows (windows of text) are the unit that is resampled, never tokens: neighbouring tokens depend on one another.
Percentile bootstrap, B. Efron (1979), with a fixed seed, so that the same scores give the same interval.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES: Final = 10_000
SEED: Final = 20_260_101
#: Indices drawn at a time; bounds the memory at 16 MB whatever the number of rows.
_CHUNK: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured figure with its 95 % interval over rows."""

    value: float
    low: float
    high: float

    def format(self, digits: int = 3) -> str:
        """Return ``value [low, high]`` for a table."""
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
        drawn = generator.integers(0, rows, size=(n, rows))
        for k in range(columns.shape[1]):
            out[begin : begin + n, k] = columns[:, k][drawn].sum(axis=1)
    return out


def ratio_estimate(
    numerator: "NDArray[Any]",
    denominator: "NDArray[Any]",
    transform: "Callable[[Any], Any] | None" = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Estimate ``transform(sum(numerator) / sum(denominator))`` with a bootstrap over rows.

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
    sums = resample_sums(columns, resamples=resamples, seed=seed)
    sums = sums[sums[:, 1] > 0]
    low, high = np.quantile(apply(sums[:, 0] / sums[:, 1]), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def paired_ratio(
    first: "NDArray[Any]",
    second: "NDArray[Any]",
    weights: "NDArray[Any]",
    *,
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
    return ratio_estimate(difference, weights, np.exp, resamples=resamples, seed=seed)
