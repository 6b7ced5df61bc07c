"""Student's t against its closed forms and published quantiles."""

import math

import pytest

from apt.evaluation.distributions import student_cdf, student_quantile


@pytest.mark.parametrize("t", [-30.0, -2.5, -0.1, 0.0, 0.7, 4.0, 100.0])
def test_closed_forms_for_one_two_and_four_degrees(t: float) -> None:
    assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
    assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)
    s = t / math.sqrt(4 + t * t)
    assert student_cdf(t, 4) == pytest.approx(0.5 + 0.75 * (s - s**3 / 3), abs=1e-12)


@pytest.mark.parametrize(
    ("p", "freedom", "wanted"),
    [(0.975, 1, 12.7062), (0.975, 9, 2.2622), (0.95, 30, 1.6973), (0.995, 120, 2.6174), (0.025, 9, -2.2622),
     (0.975, 1e9, 1.959964)],
)  # fmt: skip
def test_published_quantiles(p: float, freedom: float, wanted: float) -> None:
    assert student_quantile(p, freedom) == pytest.approx(wanted, abs=6e-5)
    assert student_cdf(student_quantile(p, freedom), freedom) == pytest.approx(p, abs=1e-9)
