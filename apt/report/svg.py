"""Charts as inline SVG: no script, no font, no request; colours come from the page's style sheet.

Every mark carries its series and its values as ``data-`` attributes in full precision, and a ``<title>`` that shows
them when the pointer rests on it.
"""

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from apt.console.output import display_width
from apt.report.charts import Chart, Point, Series
from apt.report.numbers import figure, log_ticks, nice_ticks, spans_decades, tick

WIDTH: Final = 480
_LEFT: Final = 118  # room for the names of states
_RIGHT: Final = 18
_ROW: Final = 38
#: Columns of text that fit in the room for names, also on a small screen.
_NAME_WIDTH: Final = 10
#: Half of a digit's width on a small screen, where the font is larger.
_HALF_DIGIT: Final = 5.0
#: Colours in the style sheet; further series differ by shape.
_COLOURS: Final = 5


@dataclass(frozen=True, slots=True)
class _Axis:
    """A scale from values to places on the page."""

    ticks: list[float]
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        else:
            share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 2)


def draw(chart: Chart) -> str:
    """Return a chart as an ``<svg>`` element with title and description."""
    body, height = _DRAW[chart.kind](chart)
    name, about = f"{chart.id}-title", f"{chart.id}-description"
    head = (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{name} {about}" '
        f'class="chart {chart.kind}" data-chart="{_text(chart.id)}">'
        f'<title id="{name}">{_text(chart.title)}</title><desc id="{about}">{_text(chart.description)}</desc>'
    )
    return head + "".join(body) + "</svg>"


def legend(chart: Chart) -> str:
    """Return the legend of a chart with several series; ``""`` where one series needs none."""
    if len(chart.series) < 2 or chart.kind == "shares":
        return ""
    items = [
        f'<li><svg viewBox="0 0 26 12" aria-hidden="true" class="key s{i % _COLOURS}">'
        f'<line x1="1" y1="6" x2="25" y2="6"/>{_shape(i, 13, 6, 3.6)}</svg>{_text(s.name)}</li>'
        for i, s in enumerate(chart.series)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _lines(chart: Chart) -> tuple[Iterator[str], float]:
    """Curves over a numeric x."""
    height, top, bottom, left = 300.0, 14.0, 252.0, 68.0
    points = [p for s in chart.series for p in s.points]
    ys = [p.y for p in points] + ([chart.reference] if chart.reference is not None else [])
    x = _Axis(_bounded(nice_ticks(0, max(float(p.x) for p in points) or 1), points), left, WIDTH - _RIGHT)
    y = _Axis(nice_ticks(min(ys), max(ys)), bottom, top)

    def body() -> Iterator[str]:
        for value in y.ticks:
            yield f'<line class="grid" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
            yield _label(left - 8, y(value) + 4.5, tick(value, chart.unit), "end")
        for value in x.ticks:
            if value <= max(float(p.x) for p in points) and (value == int(value) or not chart.whole_x):
                yield _label(x(value), bottom + 20, tick(value), "middle")
        yield _label((left + WIDTH - _RIGHT) / 2, height - 8, chart.x_label, "middle", "axis")
        if chart.reference is not None:
            at = y(chart.reference)
            yield f'<line class="reference" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
            yield _label(WIDTH - _RIGHT, at - 6, chart.reference_label, "end", "axis")
        for i, series in enumerate(chart.series):
            path = " ".join(f"{x(float(p.x))},{y(p.y)}" for p in series.points)
            yield f'<polyline class="line s{i % _COLOURS}" points="{path}"/>'
            for point in series.points:
                yield _mark(chart, series, point, _shape(i, x(float(point.x)), y(point.y), 4), i % _COLOURS)

    return body(), height


def _bounded(ticks: list[float], points: Sequence[Point]) -> list[float]:
    """End an x axis at the last point and not at the next round number."""
    last = max(float(p.x) for p in points)
    return [*[t for t in ticks if t < 0.94 * last], last] if last > 0 else ticks


def _dots(chart: Chart) -> tuple[Iterator[str], float]:
    """Values with intervals, one row a name."""
    rows = [(i, s, p) for i, s in enumerate(chart.series) for p in s.points]
    ends = [v for _, _, p in rows for v in (p.y, p.low, p.high) if v is not None]
    if chart.reference is not None:
        ends.append(chart.reference)
    bottom = 12.0 + _ROW * len(rows)
    x = _scale(ends, chart.unit)

    def body() -> Iterator[str]:
        yield from _grid(chart, x, bottom)
        for k, (_, series, point) in enumerate(rows):
            at = 12 + _ROW * (k + 0.5)
            whisker = ""
            if point.low is not None and point.high is not None:
                a, b = x(point.low), x(point.high)
                whisker = f'<path class="whisker" d="M{a} {at - 5}V{at + 5}M{a} {at}H{b}M{b} {at - 5}V{at + 5}"/>'
            yield _label(_LEFT - 10, at + 4.5, _shortened(str(point.x)), "end", "name")
            dot = f'<circle cx="{x(point.y)}" cy="{at}" r="5"/>'
            yield _mark(chart, series, point, whisker + dot, _colour(str(point.x)))
            yield _value_label(x, point, at, chart)

    return body(), bottom + 28


def _bars(chart: Chart) -> tuple[Iterator[str], float]:
    """Quantities from zero, one row a name."""
    rows = [(s, p) for s in chart.series for p in s.points]
    ends = [0.0, *(v for _, p in rows for v in (p.y, p.high) if v is not None)]
    bottom = 12.0 + _ROW * len(rows)
    x = _Axis(nice_ticks(0, max(ends), 4, binary=chart.unit == "bytes"), _LEFT, WIDTH - _RIGHT - 8)

    def body() -> Iterator[str]:
        yield from _grid(chart, x, bottom)
        for k, (series, point) in enumerate(rows):
            at = 12 + _ROW * (k + 0.5)
            width = max(x(point.y) - _LEFT, 1)
            shape = f'<rect x="{_LEFT}" y="{at - 10}" width="{width:.2f}" height="20" rx="2"/>'
            if point.low is not None and point.high is not None:
                shape += f'<path class="whisker" d="M{x(point.low)} {at}H{x(point.high)}"/>'
            yield _label(_LEFT - 10, at + 4.5, _shortened(str(point.x)), "end", "name")
            yield _mark(chart, series, point, shape, _colour(str(point.x)))
            inside = width > (x.end - x.start) * 0.55
            ends = (point.low if point.low is not None else point.y, point.high if point.high is not None else point.y)
            place, anchor = (x(ends[0]) - 8, "end") if inside else (x(ends[1]) + 8, "start")
            yield _label(place, at + 4.5, figure(point.y, chart.unit), anchor, "on-bar" if inside else "value")

    return body(), bottom + 28


def _shares(chart: Chart) -> tuple[Iterator[str], float]:
    """The cut map: a row for each layer, a column for each kind of part, filled as far as it is left."""
    layers = [p.x for p in chart.series[0].points]
    left, top, row = 74.0, 34.0, 30.0
    column = (WIDTH - left - 4) / len(chart.series)

    def body() -> Iterator[str]:
        for j, series in enumerate(chart.series):
            begin = left + j * column
            yield _label(begin + (column - 14) / 2, 20, series.name, "middle", "name")
            for k, point in enumerate(series.points):
                yield _mark(chart, series, point, _share(point, begin, top + k * row, column - 14, row - 8), j)
        for k, layer in enumerate(layers):
            yield _label(
                left - 12, top + k * row + 16, f"layer {layer:g}" if isinstance(layer, float) else layer, "end"
            )

    return body(), top + row * len(layers) + 6


def _share(point: Point, x: float, y: float, width: float, height: float) -> str:
    whole = point.whole or 0
    filled = width * (point.y / whole if whole else 0)
    text = point.note or f"{figure(point.y, 'count')} of {figure(whole, 'count')}"
    gone = " gone" if point.y == 0 else ""
    return (
        f'<rect class="whole{gone}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"/>'
        f'<rect class="part" x="{x:.1f}" y="{y:.1f}" width="{filled:.2f}" height="{height:.1f}" rx="2"/>'
        + _label(x + width / 2, y + height / 2 + 4.5, text, "middle", "in-cell")
    )


def _scale(values: Sequence[float], unit: str) -> _Axis:
    """An x axis for dots: logarithmic when the values span decades."""
    end = float(WIDTH - _RIGHT - 8)
    if spans_decades(values):
        return _Axis(log_ticks(min(values), max(values)), _LEFT, end, log=True)
    low, high = min(values), max(values)
    room = (high - low) * 0.04
    return _Axis(nice_ticks(max(0.0, low - room) if low >= 0 else low - room, high + room), _LEFT, end)


def _grid(chart: Chart, x: _Axis, bottom: float) -> Iterator[str]:
    """Vertical grid lines with labels, thinned so that they do not touch, the axis's name and the reference."""
    last = -1e9
    for value in x.ticks:
        at = x(value)
        yield f'<line class="grid" x1="{at}" x2="{at}" y1="8" y2="{bottom}"/>'
        text = tick(value, chart.unit)
        if at - last >= max(46, 2 * _HALF_DIGIT * len(text)):
            reaches_out = at + _HALF_DIGIT * len(text) > WIDTH - 2
            yield _label(WIDTH - 2 if reaches_out else at, bottom + 18, text, "end" if reaches_out else "middle")
            last = at
    if x.log:
        yield _label(_LEFT - 30, bottom + 18, chart.log_label, "end", "axis")
    if chart.reference is not None:
        at = x(chart.reference)
        yield f'<line class="reference" x1="{at}" x2="{at}" y1="8" y2="{bottom}"/>'


def _value_label(x: _Axis, point: Point, at: float, chart: Chart) -> str:
    """The value beside its dot, on the side with more room."""
    text = figure(point.y, chart.unit)
    right = x(point.high if point.high is not None else point.y) + 10
    left = x(point.low if point.low is not None else point.y) - 10
    if WIDTH - 4 - right >= 8.5 * len(text):
        return _label(right, at + 4.5, text, "start", "value")
    return _label(left, at + 4.5, text, "end", "value")


def _mark(chart: Chart, series: Series, point: Point, shape: str, colour: int) -> str:
    """A mark with its values, for readers, tests and anyone who wants to take them out of the page."""
    data = [("series", series.name), ("x", point.x), ("y", point.y), ("low", point.low), ("high", point.high)]
    data.append(("whole", point.whole))
    attributes = " ".join(f'data-{k}="{_text(_exact(v))}"' for k, v in data if v is not None)
    where = point.x if isinstance(point.x, str) else f"{chart.x_label} {point.x:g}"
    shown = figure(point.y, chart.unit)
    if point.whole is not None:
        shown += f" of {figure(point.whole, chart.unit)}"
    if point.low is not None and point.high is not None:
        shown += f" [{figure(point.low, chart.unit)}, {figure(point.high, chart.unit)}]"
    note = f" ({point.note})" if point.note else ""
    title = f"{series.name}, {where}: {shown}{note}"
    return f'<g class="mark s{colour}" {attributes}><title>{_text(title)}</title>{shape}</g>'


def _shortened(name: str) -> str:
    """A name that fits beside its mark: the middle of a long one is left out; the mark's title has all of it."""
    if display_width(name) <= _NAME_WIDTH:
        return name
    half = (_NAME_WIDTH - 1) // 2
    head, tail = name, name
    while display_width(head) > half:
        head = head[:-1]
    while display_width(tail) > half:
        tail = tail[1:]
    return f"{head}…{tail}"


def _exact(value: float | str) -> str:
    return value if isinstance(value, str) else repr(float(value))


def _shape(index: int, x: float, y: float, r: float) -> str:
    """A circle, a square, a diamond: series differ by shape as well as by colour."""
    if index % 3 == 1:
        return f'<rect x="{x - r:g}" y="{y - r:g}" width="{2 * r:g}" height="{2 * r:g}"/>'
    if index % 3 == 2:
        return f'<path d="M{x:g} {y - r - 1:g}L{x + r + 1:g} {y:g}L{x:g} {y + r + 1:g}L{x - r - 1:g} {y:g}Z"/>'
    return f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}"/>'


#: States keep their colour from chart to chart.
_STATES: Final = {"parent": 4, "pruned": 2, "control": 1, "recovered": 0}


def _colour(name: str) -> int:
    return next((c for state, c in _STATES.items() if name.startswith(state)), 3)


def _label(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    """Escape for element content and quoted attributes; characters that XML cannot hold become U+FFFD."""
    safe = "".join(c if c in "\t\n\r" or c >= " " else "\ufffd" for c in text)
    return html.escape(safe, quote=True)


_DRAW: Final[dict[str, Callable[[Chart], tuple[Iterator[str], float]]]] = {
    "lines": _lines,
    "dots": _dots,
    "bars": _bars,
    "shares": _shares,
}
