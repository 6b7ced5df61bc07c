"""The page of ``compare --html``: the same tables and figures, with charts, as one offline file."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Final

from apt.checkpoint.atomic import atomic_file
from apt.console.output import display_width, to_jsonable
from apt.console.table import Result, Table
from apt.console.units import format_bytes
from apt.report import page
from apt.report.charts import Chart, Point, Series, Unit
from apt.report.numbers import figure
from apt.report.views import ComparedModel, Comparison, Estimate

#: Columns that a name has beside a chart.
_NAME_COLUMNS: Final = 14


def write_comparison(result: Result, path: Path, *, overwrite: bool = False) -> None:
    """Write the page of a comparison.

    :param result: what ``compare`` returned; its own tables are shown as they are.
    :raises TargetExistsError: when the file exists and ``overwrite`` is false.
    """
    comparison = _with_short_names(Comparison.model_validate(to_jsonable(result)))
    tables = result.tables()
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    shown = page.Page(
        title=f"{comparison.models[0].name} compared",
        lead=f"{len(comparison.models)} models, measured against {comparison.models[0].name} on the same items.",
        tiles=_tiles(comparison),
        states_title=tables[0].title,
        states=tables[0],
        note="In brackets: for speed, the slowest and the fastest run; for every other figure, the 95 % interval.",
        more=tables[1:],
        checks=(),
        charts=[c for c in _charts(comparison) if c.series[0].points],
        facts=Table("", ("", ""), list(_facts(comparison).items())),
    )
    with atomic_file(path, overwrite=overwrite) as stream:
        stream.write(page.render(shown).encode("utf-8"))


def _tiles(comparison: Comparison) -> list[page.Tile]:
    first = comparison.models[0]
    smallest = min(comparison.models, key=lambda m: m.size_bytes)
    tiles = [
        page.Tile(
            "Smallest",
            f"{first.size_bytes / max(1, smallest.size_bytes):.2f} × smaller",
            f"{format_bytes(first.size_bytes)} → {format_bytes(smallest.size_bytes)} ({smallest.name})",
        )
    ]
    for model in comparison.models[1:]:
        if model.perplexity_ratio:
            r = model.perplexity_ratio
            tiles.append(page.Tile(f"Perplexity, {model.name}", f"× {r.value:.3f}", f"{r.low:.3f} to {r.high:.3f}"))
    return tiles[:4]


def _charts(comparison: Comparison) -> list[Chart]:
    quality = "agreement with the first: perplexity" if comparison.kind == "agreement" else "perplexity"
    return [
        _dots("perplexity", quality.capitalize(), f"{quality} on {comparison.tokens:,} tokens; lower is better",
              [(m, m.perplexity) for m in comparison.models]),
        _dots("bits-per-byte", "Bits per byte", "bits per byte of text; lower is better",
              [(m, m.bits_per_byte) for m in comparison.models]),
        _dots("divergence", "Distance from the first", "mean KL(first ‖ model), nats per token; lower is better",
              [(m, m.divergence.kl if m.divergence else None) for m in comparison.models]),
        _dots("agreement", "Same most likely token as the first", "share of positions; higher is better",
              [(m, m.divergence.agreement if m.divergence else None) for m in comparison.models], "share"),
        _size_chart(comparison),
        _speed_chart(comparison),
        *_task_charts(comparison),
    ]  # fmt: skip


def _dots(
    name: str, title: str, label: str, values: list[tuple[ComparedModel, Estimate | None]], unit: Unit = ""
) -> Chart:
    points = tuple(Point(m.name, e.value, e.low, e.high) for m, e in values if e is not None)
    about = f"{title} of each model with its 95 % interval."
    return Chart(name, "dots", title, about, "model", label, (Series(title, points),), unit)


def _size_chart(comparison: Comparison) -> Chart:
    points = tuple(Point(m.name, float(m.size_bytes)) for m in comparison.models)
    about = "Bytes of the weight files of each model."
    return Chart("sizes", "bars", "Size on disk", about, "model", "weight files", (Series("size", points),), "bytes")


def _speed_chart(comparison: Comparison) -> Chart:
    measured = [(m, m.speed.decode) for m in comparison.models if m.speed]
    points = tuple(Point(m.name, s.tokens_per_second, s.low, s.high) for m, s in measured)
    about = "Tokens written per second, one sequence at a time: the median, the slowest and the fastest run."
    label = "tokens per second, one sequence; higher is better"
    series = (Series("decode", points),)
    return Chart("speed", "bars", "Writing speed", about, "model", label, series, "tokens_per_second")


def _task_charts(comparison: Comparison) -> list[Chart]:
    charts = []
    for t, task in enumerate(comparison.models[0].tasks):
        for k, metric in enumerate(task.metrics):
            values = [(m, m.tasks[t].metrics[k].estimate) for m in comparison.models]
            better = "higher" if metric.higher_is_better else "lower"
            name = metric.name.replace("_", " ")
            label = f"{name} on {task.items:,} items; {better} is better"
            unit: Unit = "" if metric.name == "perplexity" else "share"
            charts.append(_dots(f"task-{t}-{k}", f"{task.name}: {name}", label, list(values), unit))
    return charts


def _with_short_names(comparison: Comparison) -> Comparison:
    """Cut the names so that they fit beside a chart, and are still different."""
    models: list[ComparedModel] = []
    for model in comparison.models:
        name = _short(model.name)
        if any(m.name == name for m in models):
            name = f"{_short(model.name, _NAME_COLUMNS - 4)} ({len(models) + 1})"
        models.append(model.model_copy(update={"name": name}))
    return comparison.model_copy(update={"models": tuple(models)})


def _short(name: str, columns: int = _NAME_COLUMNS) -> str:
    """Cut the middle out of a name; its end tells models apart as often as its beginning."""
    if display_width(name) <= columns:
        return name
    head, tail = "", ""
    while display_width(head + tail) < columns - 2:
        if len(head) <= len(tail):
            head += name[len(head)]
        else:
            tail = name[-len(tail) - 1] + tail
    return f"{head}…{tail}"


def _facts(comparison: Comparison) -> dict[str, str]:
    """What the figures depend on; no time of day, so that the same results give the same page."""
    found = {"text": f"{comparison.source}, {comparison.tokens:,} tokens"}
    found |= {f"{m.name}, computed in": m.runtime for m in comparison.models if m.runtime}
    for name in ("torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["Python"] = f"{platform.python_version()}, {platform.machine()}"
    perplexity = comparison.models[0].perplexity
    if perplexity is not None:
        found["perplexity of the first"] = figure(perplexity.value)
    return found
