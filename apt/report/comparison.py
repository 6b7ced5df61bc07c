"""The page of ``compare --html``: the same tables and figures, with charts, as one offline file."""

from pathlib import Path

from apt.checkpoint.atomic import atomic_file
from apt.console import catalogue
from apt.console.output import to_jsonable
from apt.console.table import Result, Table
from apt.console.units import format_bytes, format_count
from apt.report import page
from apt.report.language import Translate, language, translator
from apt.report.result_charts import comparison_charts
from apt.report.versions import version_facts
from apt.report.views import Comparison, finite


def write_comparison(result: Result, path: Path, *, overwrite: bool = False, lang: str | None = None) -> None:
    """Write the page of a comparison.

    :param result: what ``compare`` returned; its own tables are shown as they are, translated.
    :param lang: ``en`` or ``zh-CN``; the language of messages when absent.
    :raises TargetExistsError: when the file exists and ``overwrite`` is false.
    """
    chosen = language(lang)
    words = translator(chosen)
    comparison = Comparison.model_validate(finite(to_jsonable(result)))
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


def _facts(comparison: Comparison, words: Translate) -> dict[str, str]:
    """What the figures depend on; no time of day, so that the same results give the same page."""
    found = {words("text"): comparison.source, words("tokens"): format_count(comparison.tokens)}
    found |= {f"{m.name}: {words('runtime')}": m.runtime for m in comparison.models if m.runtime}
    return found | version_facts()
