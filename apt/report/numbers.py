"""Figures as text, and scales as people draw them."""

import math
from collections.abc import Sequence

from apt.console.units import format_bytes


def figure(value: float, unit: str = "") -> str:
    """Return a figure with as many digits as help: ``"3.558"``, ``"1.2 MiB"``, ``"98.7 %"``."""
    if unit == "bytes":
        return format_bytes(round(value))
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit in ("count", "tokens_per_second") or (value == int(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    digits = max(0, min(6, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def tick(value: float, unit: str = "") -> str:
    """Return the short label of an axis tick."""
    if unit == "bytes":
        power = min(int(math.log(value, 1024) + 1e-9), 4) if value >= 1 else 0
        return f"{value / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    if unit == "share":
        return f"{100 * value:g} %"
    if abs(value) >= 1e5:
        power = 3 if abs(value) >= 1e9 else 2 if abs(value) >= 1e6 else 1
        return f"{value / 1000**power:g} {' kMG'[power]}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def nice_ticks(low: float, high: float, count: int = 5, *, binary: bool = False) -> list[float]:
    """Return round values that cover ``low`` to ``high``, evenly; about ``count`` of them.

    :param binary: in steps of powers of two, for bytes.
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(1, count - 1)
    if binary:
        step = 2.0 ** max(0, round(math.log2(raw)))
    else:
        power = 10.0 ** math.floor(math.log10(raw))
        step = min((s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999), default=10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values (1, 2, 5 times powers of ten) that cover ``low`` to ``high``, both positive."""
    values = [
        m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    first = max((v for v in values if v <= low), default=values[0])
    last = min((v for v in values if v >= high), default=values[-1])
    return [v for v in values if first <= v <= last]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether positive values differ so much that a linear axis would hide the small ones."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 8
