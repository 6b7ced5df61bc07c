"""Is one model better than another on the same items? Paired tests, and what they could have found.

Items are paired: both models answered each, so the difference is tested item by item, which finds differences that a
test of two separate means misses. Where items share a source, the sources are the units. Several tests of one call are
one family and are corrected together (S. Holm 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from apt.evaluation.distributions import NORMAL, student_cdf, student_quantile
from apt.evaluation.statistics import (
    ALPHA,
    RESAMPLES,
    SEED,
    Estimate,
    expanded_levels,
    resample_sums,
    standard_error,
    sum_by_source,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Chance of finding a difference of the stated minimal detectable size.
POWER: Final = 0.8

Test = Literal["bootstrap", "mcnemar-midp", "clustered-mcnemar"]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The difference of two models on the same items, second less first.

    :param difference: of the mean per unit of weight: accuracy points (0-1), nats per token.
    :param test: what ``p`` is of: ``mcnemar-midp`` for right-or-wrong items, ``clustered-mcnemar`` (Durkalski et al.
        2003) where those share sources, ``bootstrap`` for everything else.
    :param p_bootstrap: of the paired bootstrap, whatever ``test`` is.
    :param p_adjusted: ``p`` corrected for all tests of the family (Holm).
    :param minimal_detectable: least true difference that would be found with a chance of 80 % on such items, at the
        level of the first step of Holm's procedure.
    :param units: independent items or sources.
    :param only_first, only_second: items that only the one or only the other model has right; ``None`` for figures
        that are not right or wrong.
    """

    difference: Estimate
    test: Test
    p: float
    p_bootstrap: float
    p_adjusted: float
    minimal_detectable: float
    units: int
    only_first: int | None = None
    only_second: int | None = None

    @property
    def significant(self) -> bool:
        """Whether there is a difference beyond chance, after correction."""
        return self.p_adjusted < ALPHA


def paired_test(
    first: "NDArray[Any] | Sequence[float]",
    second: "NDArray[Any] | Sequence[float]",
    weights: "NDArray[Any] | Sequence[float] | None" = None,
    *,
    sources: "Sequence[Any] | None" = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> PairedTest:
    """Test whether ``sum(second) / sum(weights)`` differs from ``sum(first) / sum(weights)``.

    :param first: float64 ``[items]``; ``second`` of the other model on the same items.
    :param weights: what an item counts (tokens of a row); 1 when absent.
    :param sources: what items share; every item by itself when absent.
    :returns: not yet corrected for other tests: see :func:`correct`.
    """
    import numpy as np

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    estimate, p_bootstrap, units = _bootstrap(b - a, w, sources, resamples, seed)
    test: Test = "bootstrap"
    p = p_bootstrap
    only: tuple[int, int] | tuple[None, None] = (None, None)
    if weights is None and bool(np.isin(np.stack([a, b]), (0.0, 1.0)).all()):
        only = counts = (int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()))
        if sources is None:
            test, p = "mcnemar-midp", mcnemar_midp(*counts)
        else:
            test, p = "clustered-mcnemar", clustered_mcnemar(b - a, sources)
    error = standard_error(b - a, w, sources)
    return PairedTest(estimate, test, p, p_bootstrap, p, minimal_detectable(error, units), units, *only)


def _bootstrap(
    difference: "NDArray[Any]", weights: "NDArray[Any]", sources: "Sequence[Any] | None", resamples: int, seed: int
) -> tuple[Estimate, float, int]:
    """Return the weighted mean difference with its interval, the two-sided p value and the number of units."""
    import numpy as np

    units = sum_by_source(np.stack([difference, weights], axis=1), sources)
    total = units.sum(axis=0)
    value = float(total[0] / total[1])
    if not units[:, 0].any():  # the same everywhere
        return Estimate(value, value, value), 1.0, len(units)
    if len(units) < 2 or not math.isfinite(value):
        return Estimate(value, -math.inf, math.inf), 1.0, len(units)
    sums = resample_sums(units, resamples=resamples, seed=seed)
    means = sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1.0)
    low, high = np.quantile(means, expanded_levels(len(units)))
    return Estimate(value, float(low), float(high)), bootstrap_p(means, len(units)), len(units)


def bootstrap_p(means: "NDArray[Any]", units: int) -> float:
    """Two-sided p value of "no difference": the level at which the expanded interval begins to hold 0.

    Values that equal 0 count half on either side. It is never below what so many resamples can tell.

    :param means: float64 ``[resamples]``, bootstrap distribution of a difference.
    """
    import numpy as np

    n = len(means)
    below = (float(np.count_nonzero(means < 0)) + 0.5 * float(np.count_nonzero(means == 0)) + 0.5) / (n + 1)
    share = min(below, 1.0 - below)
    if share >= 0.5:
        return 1.0
    t = NORMAL.inv_cdf(share) / math.sqrt(units / (units - 1))
    return min(1.0, 2 * student_cdf(t, units - 1))


def mcnemar_midp(only_first: int, only_second: int) -> float:
    """McNemar's exact test with the mid-p correction, two-sided (Fagerland, Lydersen, Laake 2013).

    :param only_first: items that only the first model has right; ``only_second`` likewise.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    if not n:
        return 1.0

    def chance(k: int) -> float:
        return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))

    tail = sum(chance(k) for k in range(least + 1))
    return min(1.0, 2 * tail - chance(least)) if only_first != only_second else 1.0 - 0.5 * chance(least)


def clustered_mcnemar(difference: "NDArray[Any]", sources: "Sequence[Any]") -> float:
    """McNemar's test for items that share sources (V. L. Durkalski et al. 2003), two-sided.

    The statistic is the sum of the sources' differences over the root of the sum of their squares, held against
    Student's t.
    """
    import numpy as np

    sums = sum_by_source(np.asarray(difference, np.float64)[:, None], sources)[:, 0]
    square = float((sums**2).sum())
    if not square or len(sums) < 2:
        return 1.0
    return min(1.0, 2 * student_cdf(-abs(float(sums.sum())) / math.sqrt(square), len(sums) - 1))


def minimal_detectable(error: float, units: int, tests: int = 1) -> float:
    """Least true difference found with a chance of 80 % (:data:`POWER`) at the two-sided 5 % level.

    :param error: standard error of the difference; :param tests: size of the family that the level is shared by.
    """
    if units < 2:
        return math.inf
    freedom = units - 1
    return (student_quantile(1 - ALPHA / 2 / tests, freedom) + student_quantile(POWER, freedom)) * error


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for their number (S. Holm 1979): the chance of any false finding stays at the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def correct(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Correct the tests of one family, and state what they could have found at the stricter level."""
    import dataclasses

    found = []
    for test, adjusted in zip(tests, holm([t.p for t in tests]), strict=True):
        freedom = max(1, test.units - 1)
        power = student_quantile(POWER, freedom)
        scale = (student_quantile(1 - ALPHA / 2 / len(tests), freedom) + power) / (
            student_quantile(1 - ALPHA / 2, freedom) + power
        )
        found.append(dataclasses.replace(test, p_adjusted=adjusted, minimal_detectable=test.minimal_detectable * scale))
    return found
