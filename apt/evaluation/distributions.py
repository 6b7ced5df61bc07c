"""Student's t distribution, which the standard library lacks (the normal one is ``statistics.NormalDist``)."""

import math
from statistics import NormalDist
from typing import Final

NORMAL: Final = NormalDist()
#: Beyond so many degrees of freedom the normal distribution is the same to eight digits.
_NORMAL_FROM: Final = 1e7


def student_cdf(t: float, freedom: float) -> float:
    """Return ``P(T <= t)`` for Student's t.

    :param freedom: degrees of freedom, above 0.
    """
    if freedom > _NORMAL_FROM:
        return NORMAL.cdf(t)
    tail = 0.5 * _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return 1.0 - tail if t > 0 else tail


def student_quantile(p: float, freedom: float) -> float:
    """Return the ``t`` with ``P(T <= t) = p``, by bisection.

    :param p: above 0 and below 1.
    """
    if freedom > _NORMAL_FROM:
        return NORMAL.inv_cdf(p)
    if p < 0.5:
        return -student_quantile(1.0 - p, freedom)
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function (DLMF 8.17), by its continued fraction (DLMF 8.17.22, Lentz's method)."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + numerator * d or tiny)
            c = 1.0 + numerator / c or tiny
            fraction *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return math.exp(log_front) * fraction / a
