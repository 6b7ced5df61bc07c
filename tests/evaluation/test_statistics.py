"""Intervals: against a plain loop, and for what they promise."""

import math
from random import Random

import numpy as np
import pytest

from apt.evaluation.statistics import Estimate, median_estimate, paired_ratio, ratio_estimate, resample_sums


def test_the_value_is_the_ratio_of_the_sums() -> None:
    found = ratio_estimate(np.array([1.0, 2.0, 6.0]), np.array([2.0, 2.0, 2.0]), np.exp)
    assert found.value == pytest.approx(math.exp(9 / 6))
    assert found.low < found.value < found.high


def test_the_interval_agrees_with_a_plain_loop() -> None:
    random = Random(5)
    nll = [random.gauss(200.0, 30.0) for _ in range(40)]
    tokens = [float(random.randint(80, 120)) for _ in range(40)]
    draws = []
    for _ in range(4000):
        rows = [random.randrange(40) for _ in range(40)]
        draws.append(math.exp(sum(nll[i] for i in rows) / sum(tokens[i] for i in rows)))
    draws.sort()
    found = ratio_estimate(np.array(nll), np.array(tokens), np.exp)
    assert found.low == pytest.approx(draws[100], rel=0.01)
    assert found.high == pytest.approx(draws[3900], rel=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        found = ratio_estimate(generator.normal(3.0, 1.0, 60), np.ones(60), resamples=500)
        covered += found.low <= 3.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_equal_scores_give_equal_intervals_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).random((7, 2))
    whole = resample_sums(columns, resamples=100)
    assert (whole == resample_sums(columns, resamples=100)).all()
    monkeypatch.setattr("apt.evaluation.statistics._CHUNK", 21)
    chunked = resample_sums(columns, resamples=100)
    assert chunked == pytest.approx(whole)


def test_a_paired_ratio_is_tighter_than_its_sides() -> None:
    generator = np.random.default_rng(2)
    first = generator.normal(300.0, 40.0, 80)
    second = first + generator.normal(2.0, 1.0, 80)
    tokens = np.full(80, 100.0)
    ratio = paired_ratio(first, second, tokens)
    assert ratio.low > 1.0
    alone = ratio_estimate(second, tokens, np.exp)
    assert ratio.high - ratio.low < 0.1 * (alone.high - alone.low) / alone.value
    same = paired_ratio(first, first, tokens)
    assert same == Estimate(1.0, 1.0, 1.0)


def test_one_row_has_no_spread_and_no_row_is_refused() -> None:
    assert ratio_estimate(np.array([3.0]), np.array([2.0])) == Estimate(1.5, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no rows"):
        ratio_estimate(np.array([]), np.array([]))


def test_a_figure_that_is_not_finite_has_no_interval() -> None:
    found = ratio_estimate(np.array([math.inf, 1.0]), np.array([1.0, 1.0]))
    assert found == Estimate(math.inf, math.inf, math.inf)
    assert math.isnan(ratio_estimate(np.array([math.nan]), np.array([1.0])).value)


def test_an_estimate_shows_its_interval() -> None:
    assert Estimate(1.23456, 1.0, 1.5).format(2) == "1.23 [1.00, 1.50]"


def test_a_median_has_an_interval_by_rank() -> None:
    assert median_estimate(range(1, 16)) == Estimate(8.0, 4.0, 12.0)
    assert median_estimate([3.0, 1.0, 2.0, 4.0, 6.0, 5.0]) == Estimate(3.5, 1.0, 6.0)
    assert median_estimate([2.0, 1.0, 3.0]) == Estimate(2.0, -math.inf, math.inf)


def test_the_interval_of_a_median_holds_it_often_enough() -> None:
    generator = np.random.default_rng(5)
    found = [median_estimate(generator.exponential(size=11)) for _ in range(2000)]
    held = sum(e.low <= math.log(2.0) <= e.high for e in found) / len(found)
    assert held >= 0.95
