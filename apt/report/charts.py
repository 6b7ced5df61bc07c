"""Charts as data: what is drawn, what stands in the table beside it, and what ``report.json`` holds, are one thing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from apt.console.table import Table
from apt.report.numbers import figure

#: ``lines``: curves over a number; ``dots``: values with intervals by name; ``bars``: quantities by name;
#: ``shares``: of each named whole, how much is left (the cut map).
Kind = Literal["lines", "dots", "bars", "shares"]
Unit = Literal["", "bytes", "share", "tokens_per_second", "nats", "count"]


@dataclass(frozen=True, slots=True)
class Point:
    """One mark.

    :param x: a number, or a name.
    :param low, high: the 95 % interval, where there is one.
    :param whole: for ``shares``, what ``y`` is a part of.
    """

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None
    whole: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Marks that belong together."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    :param id: unique in the report; also the anchor in the page.
    :param description: what a reader who cannot see it should know.
    :param reference: a value that the others are held against, drawn as a line.
    """

    id: str
    kind: Kind
    title: str
    description: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    unit: Unit = ""
    reference: float | None = None
    reference_label: str = ""
    #: x is a count (of layers, of steps): no tick between whole numbers.
    whole_x: bool = False
    #: What is said of an axis that is logarithmic.
    log_label: str = "log scale"

    def plain(self) -> dict[str, Any]:
        """Return the chart as it stands in a JSON file; what a point does not have is left out."""
        series = [
            {
                "name": s.name,
                "points": [
                    {k: v for k in ("x", "y", "low", "high", "whole", "note") if (v := getattr(p, k)) not in (None, "")}
                    for p in s.points
                ],
            }
            for s in self.series
        ]
        return {
            "id": self.id, "kind": self.kind, "title": self.title, "x_label": self.x_label,
            "y_label": self.y_label, "unit": self.unit, "series": series,
        }  # fmt: skip

    def table(self) -> Table:
        """Return the chart's figures: a row for each x, a column for each series."""
        names = [s.name for s in self.series]
        places = list(dict.fromkeys(p.x for s in self.series for p in s.points))
        rows = []
        for x in places:
            cells = [self._cell(s.points, x) for s in self.series]
            rows.append([x if isinstance(x, str) else f"{x:g}", *cells])
        columns = [self.x_label or "", *(names if len(names) > 1 else [self.y_label])]
        return Table(self.title, columns, rows)

    def _cell(self, points: Sequence[Point], x: float | str) -> str:
        point = next((p for p in points if p.x == x), None)
        if point is None:
            return ""
        text = figure(point.y, self.unit)
        if point.whole is not None:
            text = f"{text} of {figure(point.whole, self.unit)}"
        if point.low is not None and point.high is not None:
            text += f" [{figure(point.low, self.unit)}, {figure(point.high, self.unit)}]"
        return f"{text} ({point.note})" if point.note else text
