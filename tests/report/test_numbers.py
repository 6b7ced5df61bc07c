"""Figures and scales."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.report.numbers import figure, log_ticks, nice_ticks, spans_decades, tick


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.5581, "", "3.558"), (41.0, "", "41.00"), (0.12, "", "0.1200"), (0.000074, "", "7.4e-05"), (0, "", "0"),
        (12345.6, "", "12,346"), (-2.5, "", "-2.500"), (1024, "bytes", "1.0 KiB"), (0.9871, "share", "98.7 %"),
        (523.4, "tokens_per_second", "523"), (172.0, "count", "172"),
    ],
)  # fmt: skip
def test_figure(value, unit, text):
    assert figure(value, unit) == text


def test_tick():
    assert [tick(0.5), tick(2000), tick(0.25, "share"), tick(1 << 20, "bytes")] == ["0.5", "2,000", "25 %", "1 MiB"]
    assert [tick(n, "bytes") for n in (0, 512, 1024, 1.25 * 2**20, 3 * 2**30)] == [
        "0 B", "512 B", "1 KiB", "1.25 MiB", "3 GiB",
    ]  # fmt: skip


finite = st.floats(-1e12, 1e12)


@given(low=finite, span=st.floats(1e-9, 1e12))
def test_ticks_cover_what_they_are_for(low, span):
    span = max(span, abs(low) * 1e-9)
    ticks = nice_ticks(low, low + span)
    slack = span * 1e-6
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(ticks)


def test_ticks_of_nothing():
    assert len(nice_ticks(0, 0)) >= 2
    assert len(nice_ticks(5, 5)) >= 2


def test_bytes_are_ticked_in_powers_of_two():
    assert nice_ticks(0, 1_040_128, 4, binary=True) == [i * 262144 for i in range(5)]


@given(low=st.floats(1e-6, 1e6), ratio=st.floats(1.01, 1e6))
def test_log_ticks_cover_what_they_are_for(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low
    assert ticks[-1] >= low * ratio * (1 - 1e-9)
    assert all(b > a and math.isfinite(b) for a, b in itertools.pairwise(ticks))


def test_when_a_logarithm_is_called_for():
    assert spans_decades([3.5, 41.0])
    assert not spans_decades([3.5, 4.1])
    assert not spans_decades([0.0, 4.1])
    assert not spans_decades([])
