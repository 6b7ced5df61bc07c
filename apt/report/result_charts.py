"""Charts of results that lie in a JSON file: a report's own charts, or the models of a comparison."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import TypeAdapter, ValidationError

from apt.console.errors import BadInputError
from apt.console.units import format_bytes, format_count
from apt.report.charts import Chart, Kind, Point, Series, Unit
from apt.report.language import Translate
from apt.report.numbers import figure
from apt.report.views import ComparedModel, Comparison, Estimate, finite

_KINDS: Final = get_args(Kind)
_UNITS: Final = get_args(Unit)


def report_charts(content: Mapping[str, Any], path: Path, words: Translate) -> list[Chart]:
    """Return the charts that a ``report.json`` holds.

    :raises BadInputError: when one is not a chart.
    """
    charts = content.get("charts")
    if not isinstance(charts, list):
        raise BadInputError(f"{path}: charts is not a list")
    return [_chart(c, f"{path}: charts[{i}]", words) for i, c in enumerate(charts)]


def _chart(value: Any, where: str, words: Translate) -> Chart:
    try:
        kind, unit = value["kind"], value.get("unit", "")
        if kind not in _KINDS or unit not in _UNITS:
            raise ValueError(f"kind {kind!r}, unit {unit!r}")
        series = tuple(
            Series(str(s["name"]), tuple(_POINT.validate_python(p) for p in s["points"])) for s in value["series"]
        )
        if not any(s.points for s in series):
            raise ValueError("no points")
        title = str(value["title"])
        return Chart(
            id=str(value["id"]), kind=kind, title=words(title), description=words(title),
            x_label=words(str(value.get("x_label", ""))), y_label=words(str(value.get("y_label", ""))), series=series,
            unit=unit, log_label=words("log scale"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as problem:  # ValidationError is a ValueError
        told = str(problem).splitlines()[0]
        raise BadInputError(f"{where}: not a chart: {told}") from None


_POINT: Final = TypeAdapter(Point)


def comparison_of(content: Mapping[str, Any], path: Path) -> Comparison:
    """Read the JSON of ``compare``.

    :raises BadInputError: naming the first field that is missing or wrong.
    """
    try:
        return Comparison.model_validate(finite(content))
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise BadInputError(f"{path}: {place}: {first['msg']}") from None


def comparison_charts(comparison: Comparison, words: Translate) -> list[Chart]:
    """Return the charts of a comparison, as far as there are figures."""
    interval, value = words("Each model's value with its 95 % interval."), words("Each model's value.")
    quality = "Agreement with the first: perplexity" if comparison.kind == "agreement" else "Perplexity"
    found = [
        _dots("perplexity", quality, "perplexity; lower is better", comparison, lambda m: m.perplexity, words),
        _dots("bits", "Bits per byte", "bits per byte; lower is better", comparison, lambda m: m.bits_per_byte, words),
        _dots(
            "divergence", "Distance from the first model", "KL divergence, nats per token; lower is better", comparison,
            lambda m: m.divergence.kl if m.divergence else None, words,
        ),
        _dots(
            "agreement", "Same top token as the first model", "higher is better", comparison,
            lambda m: m.divergence.agreement if m.divergence else None, words, unit="share",
        ),
        Chart(
            id="sizes", kind="bars", title=words("Size on disk"), description=value, x_label=words("model"),
            y_label=words("bytes of the weight files"), unit="bytes",
            series=(Series(words("size"), tuple(Point(m.name, float(m.size_bytes)) for m in comparison.models)),),
        ),
        Chart(
            id="speed", kind="bars", title=words("Writing speed"), description=interval, x_label=words("model"),
            y_label=words("tokens per second, one sequence"), unit="tokens_per_second",
            series=(Series(words("decode"), tuple(
                Point(m.name, m.speed.decode.tokens_per_second, m.speed.decode.low, m.speed.decode.high)
                for m in comparison.models if m.speed
            )),),
        ),
        *_task_charts(comparison, words),
    ]  # fmt: skip
    return [c for c in found if any(s.points for s in c.series)]


def _task_charts(comparison: Comparison, words: Translate) -> Iterator[Chart]:
    """Yield a chart for each figure of each task that all models answered."""
    for t, task in enumerate(comparison.models[0].tasks):
        for k, metric in enumerate(task.metrics):
            values = [(m.name, m.tasks[t].metrics[k].estimate) for m in comparison.models if t < len(m.tasks)]
            points = tuple(Point(name, e.value, e.low, e.high) for name, e in values)
            figure_name = words(metric.name.replace("_", " "))
            better = words("higher is better" if metric.higher_is_better else "lower is better")
            yield Chart(
                id=f"task-{t}-{k}", kind="dots", title=f"{task.name}: {figure_name}",
                description=words("Each model's value with its 95 % interval."), x_label=words("model"),
                y_label=f"{figure_name}; {better}", series=(Series(figure_name, points),),
                unit="" if metric.name == "perplexity" else "share", log_label=words("log scale"),
            )  # fmt: skip


def _dots(
    name: str,
    title: str,
    y_label: str,
    comparison: Comparison,
    pick: Callable[[ComparedModel], Estimate | None],
    words: Translate,
    unit: Unit = "",
) -> Chart:
    estimates = [(m.name, e) for m in comparison.models if (e := pick(m)) is not None]
    points = tuple(Point(n, e.value, e.low, e.high) for n, e in estimates)
    return Chart(
        id=name, kind="dots", title=words(title), description=words("Each model's value with its 95 % interval."),
        x_label=words("model"), y_label=words(y_label), series=(Series(words(title), points),), unit=unit,
        log_label=words("log scale"),
    )  # fmt: skip


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Return a row for each model: parameters, size, perplexity, ratio to the first, KL."""
    return [
        [
            m.name,
            format_count(m.parameters),
            format_bytes(m.size_bytes),
            _interval(m.perplexity),
            _interval(m.perplexity_ratio),
            _interval(m.divergence.kl if m.divergence else None),
        ]
        for m in comparison.models
    ]


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{figure(estimate.value)} [{figure(estimate.low)}, {figure(estimate.high)}]"
