"""Figures as people read and write them."""

import pytest

from apt.console.units import format_age, format_bytes, parse_bytes, parse_count, parse_share


def test_figures_are_shown_as_people_read_them() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [format_age(s) for s in (5, 90, 7200, 200_000)] == ["5 s", "1 min", "2 h", "2 d"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 << 30), ("80 GB", 80 * 10**9), ("1.5kib", 1536), ("1000", 1000), ("7b", 7), ("2TB", 2 * 10**12)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GB", "24 XiB", "1e9", "0", "24Gi", "٣GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    if text == "24":
        assert parse_bytes(text) == 24
        return
    with pytest.raises(ValueError, match="is not"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.2B", 1_200_000_000),
        ("700M", 700_000_000),
        ("40 k", 40_000),
        ("4326656", 4_326_656),
        ("1.234567m", 1_234_567),
    ],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "1e9", "-3M", "3GiB", "0", "0.0001k", "70%", "0.7x", "３M"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_count(text)


def test_shares_are_told_from_counts() -> None:
    assert [parse_share(t) for t in ("70%", "0.7x", "12.5 %", "700M", "0.7", "70 percent")] == [
        0.7, 0.7, 0.125, None, None, None,
    ]  # fmt: skip
