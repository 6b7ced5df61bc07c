"""Breaking text into lines by what a terminal shows: Chinese has no spaces, and its characters are two columns wide."""

import re
from typing import Final

from apt.console.output import display_width

#: A run that is not broken: anything narrow without a space; wide characters stand alone.
_UNIT: Final = re.compile(r"[ ]+|[\x21-\u10ff\u2010-\u2017\u2020-\u2bff]+|.", re.DOTALL)

#: What does not begin a line, and what does not end one.
_NOT_FIRST: Final = "，。：；！？、）》”’…"
_NOT_LAST: Final = "（《“‘"


def wrap(text: str, width: int, first: str = "", rest: str = "") -> str:
    """Fill lines of at most ``width`` columns, the first after ``first`` and the others after ``rest``."""
    lines, line, used = [], first, display_width(first)
    empty = True
    for unit in _units(" ".join(text.split())):
        columns = display_width(unit)
        if not empty and used + columns > width and unit != " ":
            lines.append(line.rstrip())
            line, used, empty = rest, display_width(rest), True
        if empty and unit == " ":
            continue
        line, used, empty = line + unit, used + columns, False
    return "\n".join([*lines, line.rstrip()])


def _units(text: str) -> list[str]:
    """Return the pieces between which a line may end."""
    pieces: list[str] = []
    for unit in _UNIT.findall(text):
        if pieces and (unit in _NOT_FIRST or pieces[-1][-1] in _NOT_LAST) and pieces[-1] != " ":
            pieces[-1] += unit
        else:
            pieces.append(unit)
    return pieces
