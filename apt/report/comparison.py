"""The page of ``compare --html``: the same tables and figures, with charts, as one offline file."""

from pathlib import Path
from typing import Final

from apt.checkpoint.atomic import atomic_file
from apt.console import catalogue
from apt.console.output import display_width, to_jsonable
from apt.console.table import Result, Table
from apt.console.units import format_bytes, format_count
from apt.report import page
from apt.report.language import Translate, language, translator
from apt.report.result_charts import comparison_charts
from apt.report.versions import version_facts
from apt.report.views import ComparedModel, Comparison

#: Columns that a name has beside a chart.
_NAME_COLUMNS: Final = 14


def write_comparison(result: Result, path: Path, *, overwrite: bool = False, lang: str | None = None) -> None:
    """Write the page of a comparison.

    :param result: what ``compare`` returned; its own tables are shown as they are, translated.
    :param lang: ``en`` or ``zh-CN``; the language of messages when absent.
    :raises TargetExistsError: when the file exists and ``overwrite`` is false.
    """
    chosen = language(lang)
    words = translator(chosen)
    comparison = _with_short_names(Comparison.model_validate(to_jsonable(result)))
    tables = [catalogue.load(chosen).table(t) if chosen != "en" else t for t in result.tables()]
    note = words("In brackets: for speed, the slowest and the fastest run; for every other figure, the 95 % interval.")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    sheet = page.Sheet(
        title=f"{words('Comparison')}: {comparison.models[0].name}",
        lead=words("Every model is measured against the first, on the same items."),
        tiles=_tiles(comparison, words),
        parts=[page.Part(words("How it was made"), Table("", ("", ""), list(_facts(comparison, words).items())))],
        charts=comparison_charts(comparison, words),
        lang=chosen,
        words=words,
        verdict=[page.Part(t.title, t, "states", note if i == 0 else "") for i, t in enumerate(tables)],
    )
    with atomic_file(path, overwrite=overwrite) as stream:
        stream.write(page.render_sheet(sheet).encode("utf-8"))


def _tiles(comparison: Comparison, words: Translate) -> list[page.Tile]:
    first = comparison.models[0]
    smallest = min(comparison.models, key=lambda m: m.size_bytes)
    tiles = [
        page.Tile(
            words("Smallest"),
            f"÷ {first.size_bytes / max(1, smallest.size_bytes):.2f}",
            f"{format_bytes(first.size_bytes)} → {format_bytes(smallest.size_bytes)} ({smallest.name})",
        )
    ]
    for model in comparison.models[1:]:
        if model.perplexity_ratio:
            r = model.perplexity_ratio
            interval = f"{r.low:.3f} – {r.high:.3f}"
            tiles.append(page.Tile(f"{words('Perplexity')}, {model.name}", f"× {r.value:.3f}", interval))
    return tiles[:4]


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


def _facts(comparison: Comparison, words: Translate) -> dict[str, str]:
    """What the figures depend on; no time of day, so that the same results give the same page."""
    found = {words("text"): comparison.source, words("tokens"): format_count(comparison.tokens)}
    found |= {f"{m.name}: {words('runtime')}": m.runtime for m in comparison.models if m.runtime}
    return found | version_facts()
