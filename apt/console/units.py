"""Figures as people read and write them."""

import re
from decimal import Decimal
from typing import Final

_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(?:([kmgt])(i?)b|b)?", re.IGNORECASE)
_COUNT: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmbt]?)", re.IGNORECASE)
_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*([%x])", re.IGNORECASE)


def format_bytes(n: int) -> str:
    """Return ``"8.3 MiB"``: binary units, exact below one KiB."""
    value, unit = float(n), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"


def format_count(n: int) -> str:
    """Return ``"4,326,656"``."""
    return f"{n:,}"


def format_age(seconds: float) -> str:
    """Return ``"3 h"``: the largest unit that holds at least one."""
    for unit, length in (("y", 31_557_600), ("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def parse_bytes(text: str) -> int:
    """Return the bytes that ``"24GiB"``, ``"1.5 TB"`` or ``"1000"`` say: binary units with an i, decimal ones without.

    :raises ValueError: for anything else, zero included.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    number, prefix, binary = match.groups()
    power = "kmgt".index(prefix.lower()) + 1 if prefix else 0
    value = int(float(number) * (1024 if binary else 1000) ** power)
    if value <= 0:
        raise ValueError(f"{text!r} is nothing")
    return value


def parse_count(text: str) -> int:
    """Return the number that ``"1.2B"``, ``"700M"``, ``"40k"`` or ``"4326656"`` says; B are billions.

    :raises ValueError: for anything else, zero included.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number such as 700M or 1.2B")
    number, unit = match.groups()
    value = int(Decimal(number) * 1000 ** (" kmbt".index(unit.lower()) if unit else 0))
    if value <= 0:
        raise ValueError(f"{text!r} is nothing")
    return value


def parse_share(text: str) -> float | None:
    """Return the share that ``"70%"`` or ``"0.7x"`` says, ``None`` for what is written otherwise."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit = match.groups()
    return float(Decimal(number) / 100 if unit == "%" else Decimal(number))
