"""A sheet of charts as one PNG, drawn by matplotlib where it is installed."""

import importlib.util
import io
import logging
import warnings
from typing import Any, Final

from apt.console.errors import MissingDependencyError
from apt.report.charts import Chart, Point
from apt.report.numbers import figure, spans_decades
from apt.report.page import Sheet

#: Inches of one chart, and dots an inch.
_SIZE: Final = (6.0, 3.6)
_DPI: Final = 110
_COLUMNS: Final = 2
#: Fonts with Chinese glyphs that systems ship; the first one that is there is used after the default.
_CHINESE_FONTS: Final = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "SimHei",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
)  # fmt: skip


def require_matplotlib() -> None:
    """Raise early, before anything is read.

    :raises MissingDependencyError: when matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "a PNG is drawn by matplotlib, which is not installed",
            hint="pip install matplotlib, or leave --png away for an HTML page, which needs nothing",
        )


def render_png(sheet: Sheet) -> bytes:
    """Return the charts as a PNG, two beside one another, below the title.

    :raises MissingDependencyError: when matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    known = {f.name for f in font_manager.fontManager.ttflist}
    chinese = [f for f in _CHINESE_FONTS if f in known][:1]
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    rows = -(-len(sheet.charts) // _COLUMNS)
    settings = {"font.family": ["DejaVu Sans", *chinese], "axes.unicode_minus": False, "font.size": 9}
    with pyplot.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # one that no font here has (an emoji) is drawn as a box
        drawing, axes = pyplot.subplots(
            rows, _COLUMNS, figsize=(_SIZE[0] * _COLUMNS, _SIZE[1] * rows + 0.6), squeeze=False, layout="constrained"
        )
        drawing.suptitle(f"{sheet.title} – {sheet.lead}", fontsize=13)
        cells = list(axes.flat)
        for cell, chart in zip(cells, sheet.charts, strict=False):
            _draw(cell, chart)
        for cell in cells[len(sheet.charts) :]:
            cell.set_visible(False)
        stream = io.BytesIO()
        drawing.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
        pyplot.close(drawing)
    return stream.getvalue()


def _draw(axes: Any, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=10)
    if chart.kind == "lines":
        for series in chart.series:
            axes.plot([p.x for p in series.points], [p.y for p in series.points], marker=".", label=series.name)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label, fontsize=8)
        axes.grid(alpha=0.3)
        if len(chart.series) > 1:
            axes.legend(fontsize=8)
        return
    points = [(f"{s.name} {p.x}" if chart.kind == "shares" else str(p.x), p) for s in chart.series for p in s.points]
    places = range(len(points))
    values = [p.y for _, p in points]
    if chart.kind == "dots":
        axes.errorbar(values, places, xerr=_whiskers([p for _, p in points]), fmt="o", capsize=3)
    else:
        axes.barh(places, values)
    if chart.kind == "dots" and spans_decades(values):
        axes.set_xscale("log")
    axes.set_yticks(list(places), [name for name, _ in points])
    axes.invert_yaxis()
    for place, (_, point) in zip(places, points, strict=True):
        axes.annotate(f" {figure(point.y, chart.unit)}", (point.y, place), va="bottom", fontsize=8)
    axes.set_xlabel(chart.y_label, fontsize=8)
    axes.margins(x=0.15)


def _whiskers(points: list[Point]) -> list[list[float]]:
    """Distances from the value to both ends of its interval; 0 where there is none."""
    low = [max(0.0, p.y - (p.low if p.low is not None else p.y)) for p in points]
    high = [max(0.0, (p.high if p.high is not None else p.y) - p.y) for p in points]
    return [low, high]
