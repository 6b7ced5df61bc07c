"""Paired tests against their definitions, and for what they promise on a few simulations."""

import math
from itertools import product

import numpy as np
import pytest

from apt.evaluation.paired import (
    clustered_mcnemar,
    correct,
    holm,
    mcnemar_midp,
    minimal_detectable,
    paired_test,
)
from apt.evaluation.statistics import mean_estimate, standard_error


@pytest.mark.parametrize(("b", "c"), list(product(range(6), repeat=2)))
def test_midp_is_its_definition(b: int, c: int) -> None:
    """Half the chance of what was seen, all of what is rarer, counted over all outcomes of fair coins."""
    n = b + c
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    seen = min(b, c)
    wanted = 2 * (sum(chances[:seen]) + chances[seen] / 2)
    assert mcnemar_midp(b, c) == pytest.approx(min(1.0, wanted if b != c else 1 - chances[seen] / 2 if n else 1.0))


def test_published_example_of_midp() -> None:
    # Bentur et al. (2009) in Fagerland, Lydersen, Laake (2013), table 1: 1 against 7 discordant pairs.
    assert mcnemar_midp(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_midp(5, 500) < 1e-100


def test_holm_follows_its_steps() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_the_same_answers_are_no_difference() -> None:
    same = paired_test([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert same.p == same.p_bootstrap == 1.0 and not same.significant
    assert (same.difference.value, same.only_first, same.only_second) == (0.0, 0, 0)


def test_a_consistent_difference_is_found_where_the_means_alone_hide_it() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(100, 200, 60).astype(float)
    first = tokens * generator.normal(3.0, 0.5, 60)
    found = correct([paired_test(first, first + 0.01 * tokens * generator.normal(1, 1, 60), tokens)])[0]
    assert found.significant and found.test == "bootstrap" and found.only_first is None
    assert found.difference.low < 0.01 < found.difference.high
    assert paired_test(first, first[::-1] * tokens / tokens[::-1], tokens).p > 0.05


def test_sources_are_the_units() -> None:
    generator = np.random.default_rng(1)
    sources = np.repeat(np.arange(12), 20)
    suits = generator.normal(0, 2, 12)[sources]
    first = (generator.normal(0, 1, 240) - suits > 0).astype(float)
    second = (generator.normal(0, 1, 240) + suits > 0).astype(float)
    alone, shared = paired_test(first, second), paired_test(first, second, sources=sources.tolist())
    assert (alone.test, shared.test, shared.units) == ("mcnemar-midp", "clustered-mcnemar", 12)
    assert shared.p > alone.p and shared.minimal_detectable > 2 * alone.minimal_detectable
    sums = [float((second - first)[sources == k].sum()) for k in range(12)]
    t = sum(sums) / math.sqrt(sum(s * s for s in sums))
    assert clustered_mcnemar(second - first, sources.tolist()) == pytest.approx(shared.p)
    assert abs(t) < 2.2 or shared.p < 0.05


def test_singleton_sources_change_nothing_of_the_error() -> None:
    values = np.random.default_rng(2).random(30)
    assert standard_error(values, None, list(range(30))) == pytest.approx(standard_error(values))
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / math.sqrt(30))
    assert math.isnan(standard_error(values[:1]))


def test_wilson_holds_at_the_ends() -> None:
    zero, all_of_them = mean_estimate(np.zeros(20)), mean_estimate(np.ones(20))
    assert zero.low == 0.0 and zero.high == pytest.approx(0.1611, abs=5e-5)
    assert all_of_them.high == 1.0 and all_of_them.low == pytest.approx(1 - zero.high)
    one = mean_estimate(np.array([1.0, 0.0]), ["a", "a"])
    assert one.low == -math.inf


def test_the_detectable_difference_grows_with_the_number_of_tests() -> None:
    assert minimal_detectable(0.01, 10_000) == pytest.approx(0.028, rel=0.002)
    tests = [paired_test([0.0, 1.0] * 50, [1.0, 0.0, 0.0, 1.0] * 25)] * 3
    alone, together = correct(tests[:1])[0], correct(tests)[0]
    assert together.minimal_detectable > alone.minimal_detectable == pytest.approx(tests[0].minimal_detectable)
    assert math.isinf(minimal_detectable(0.01, 1))
