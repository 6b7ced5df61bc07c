"""Figures as people read them."""


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
