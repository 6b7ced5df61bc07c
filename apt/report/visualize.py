"""``visualize``: a model, a training run, or the JSON of a report or comparison, as one offline page or picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apt.checkpoint.atomic import atomic_file
from apt.checkpoint.reader import LINEAGE_NAME, read_json
from apt.checkpoint.sizes import display_name
from apt.console.errors import BadInputError, NotFoundError, UsageError
from apt.console.table import Table
from apt.report.language import language, translator
from apt.report.model_charts import ModelView
from apt.report.page import Part, Sheet, render_sheet
from apt.report.result_charts import comparison_charts, comparison_of, comparison_rows, report_charts
from apt.report.run_charts import find_histories, history_of, run_charts, run_tiles, summary_rows
from apt.store import resolve

Subject = Literal["model", "run", "comparison", "report"]


@dataclass(frozen=True, slots=True)
class Visualization:
    """What was drawn.

    :param charts: every figure of the page, as a report's JSON has them.
    """

    path: Path
    format: Literal["html", "png"]
    subject: Subject
    title: str
    language: str
    charts: tuple[dict[str, Any], ...]

    def tables(self) -> list[Table]:
        """Return where it was written and what is on it."""
        rows = [[c["title"], str(sum(len(s["points"]) for s in c["series"]))] for c in self.charts]
        return [Table(f"{self.path}: {self.title}", ("chart", "points"), rows)]


def visualize(
    target: str, *, output: Path | None = None, png: bool = False, lang: str | None = None, overwrite: bool = False
) -> Visualization:
    """Draw a target and write the page (or the picture).

    :param target: a model, a run's directory, or a JSON file of ``report``, ``compare`` or a training.
    :param output: ``None`` for ``<name>.html`` (``.png``) in the current directory.
    :raises NotFoundError: when there is no such thing; :raises BadInputError: when it is damaged or holds no figure.
    :raises MissingDependencyError: for a picture without matplotlib.
    """
    png = png or (output is not None and output.suffix.lower() == ".png")
    chosen = language(lang)
    path = resolve(target)
    name = path.stem if path.is_file() else display_name(target, path)
    written = output or Path(f"{name.replace('/', '-').replace(':', '-')}.{'png' if png else 'html'}")
    if written.exists() and written.is_dir():
        raise UsageError(f"{written} is a directory", hint=f"-o {written / (name + '.html')}")
    if png:
        from apt.report.picture import require_matplotlib

        require_matplotlib()
    subject, sheet = _sheet(target, path, name, chosen)
    if not sheet.charts:
        raise BadInputError(
            f"{path} holds no figure that can be drawn", hint="a model, a training run, or a report's JSON"
        )
    if png:
        from apt.report.picture import render_png

        content = render_png(sheet)
    else:
        content = render_sheet(sheet).encode("utf-8")
    written.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(written, overwrite=overwrite) as stream:
        stream.write(content)
    charts = tuple(c.plain() for c in sheet.charts)
    return Visualization(written, "png" if png else "html", subject, sheet.title, chosen, charts)


def _sheet(target: str, path: Path, name: str, lang: str) -> tuple[Subject, Sheet]:
    if not path.exists():
        raise NotFoundError(f"no model, run or report at {path}")
    if path.is_file() and path.suffix == ".json":
        return _json_sheet(path, lang)
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / "report.json").is_file():
            return _json_sheet(path / "report.json", lang)
        histories = find_histories(path)
        if histories:
            return "run", _run_sheet(name, histories, lang)
        raise BadInputError(
            f"{path} is neither a model nor a training run",
            hint="a model has a config.json, a run a trainer_state.json, a .jsonl with steps or a report.json",
        )
    return "model", _model_sheet(target, path, name, lang)


def _model_sheet(target: str, path: Path, name: str, lang: str) -> Sheet:
    """A model; the curve of its training too, when it was made here and remembers it."""
    words = translator(lang)
    view = ModelView(target, words)
    charts = view.charts()
    if path.is_dir() and (path / LINEAGE_NAME).is_file():
        charts += run_charts({k: v for k, v in find_histories(path).items() if k == LINEAGE_NAME}, words)
    parts = [Part(words("Facts"), Table("", ("", ""), view.rows()))]
    return Sheet(name, words("Weights and layers"), view.tiles(), parts, charts, lang, words)


def _run_sheet(name: str, histories: Any, lang: str) -> Sheet:
    words = translator(lang)
    rows = summary_rows(histories, words)
    parts = [Part(words("Facts"), Table("", ("", ""), rows))]
    return Sheet(
        name, words("Training curves"), run_tiles(histories, words), parts, run_charts(histories, words), lang, words
    )


def _json_sheet(path: Path, lang: str) -> tuple[Subject, Sheet]:
    """A JSON file by what it holds: charts, compared models, or the curve of a training."""
    words = translator(lang)
    content = read_json(path)
    name = path.parent.resolve().name if path.name == "report.json" else path.stem
    if "charts" in content:
        title = content.get("title")
        charts = report_charts(content, path, words)
        facts = content.get("facts")
        rows = [[str(k), str(v)] for k, v in facts.items()] if isinstance(facts, dict) else []
        parts = [Part(words("Facts"), Table("", ("", ""), rows))] if rows else []
        return "report", Sheet(str(title or name), words("Report"), [], parts, charts, lang, words)
    if isinstance(content.get("models"), list):
        comparison = comparison_of(content, path)
        columns = tuple(words(c) for c in ("model", "parameters", "size", "perplexity", "× first", "KL"))
        note = f"{words('text')}: {comparison.source}; {words('tokens')}: {comparison.tokens:,}"
        parts = [Part(words("Models"), Table("", columns, comparison_rows(comparison)), "states", note)]
        charts = comparison_charts(comparison, words)
        return "comparison", Sheet(name, words("Comparison"), [], parts, charts, lang, words)
    if "log_history" in content or "curve" in content:
        return "run", _run_sheet(name, {path.name: history_of(content, path)}, lang)
    raise BadInputError(
        f"{path}: neither a report, nor a comparison, nor a training's result",
        hint="write one with: apt_model compare A B --json > compare.json",
    )
