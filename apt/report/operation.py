"""The operation ``report``: results as one HTML page and one JSON file that say the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from apt.checkpoint.atomic import atomic_file
from apt.console.output import to_json
from apt.console.table import Table
from apt.console.units import format_bytes
from apt.options import Options, OutputPath, Overwrite
from apt.report import page
from apt.report.numbers import figure
from apt.report.sections import charts_of
from apt.report.summary import Check, State, checks_of, states_of
from apt.report.versions import version_facts
from apt.report.views import (
    Comparison,
    Difference,
    Distillation,
    Estimate,
    Export,
    Pruning,
    Rate,
    StoredVersion,
    Text,
    Verification,
)

_FORMAT: Final = 1


class ReportOptions(Options):
    """What to tell, and where to write it."""

    html: OutputPath = Field(description="The page.")
    data: OutputPath = Field(description="The same figures as JSON: states, checks, charts, and every step's result.")
    title: str = Field(description="Title of the page; {model} in it stands for the model's name.")
    model: str = Field(
        default="", description="What was worked on: a reference, of which a path shows only its last part."
    )
    comparison: Comparison = Field(description="The result of compare; the first model is the parent.")
    text: Text | None = Field(
        default=None, description="Where the rows come from, when the comparison read them from a file."
    )
    pruning: Pruning | None = Field(default=None, description="The result of prune.")
    distillation: Distillation | None = Field(default=None, description="The result of distill.")
    exports: tuple[Export, ...] = Field(default=(), description="Results of export-gguf.")
    verifications: tuple[Verification, ...] = Field(default=(), description="Results of verify-gguf.")
    backups: tuple[StoredVersion, ...] = Field(
        default=(), description="Backups in order, each with what was new in it against the one before."
    )
    restored: Difference | None = Field(
        default=None, description="The restored model against the one that was backed up."
    )
    max_perplexity_ratio: float = Field(
        default=1.3, gt=0, description="Most that the last model's perplexity may be, as a multiple of the parent's."
    )
    results: dict[str, Any] = Field(default_factory=dict, description="Whole results to keep in data, by step.")
    overwrite: Overwrite = False


@dataclass(frozen=True, slots=True)
class ReportResult:
    """A report.

    :param failed: names of the checks that were not passed; empty when all were.
    """

    html: Path
    data: Path
    title: str
    kind: str
    states: tuple[State, ...]
    checks: tuple[Check, ...]
    failed: str

    def tables(self) -> list[Table]:
        """Return the states side by side, and the checks."""
        checks = [[c.name, "ok" if c.passed else "FAILED", c.found] for c in self.checks]
        return [states_table(self.states, self.kind, self.title), Table("Checks", ("check", "result", "found"), checks)]


def report(options: ReportOptions) -> ReportResult:
    """Write the page and the JSON file; both are written also when a check has failed.

    :raises TargetExistsError: when one of them exists and ``overwrite`` is false.
    """
    comparison = options.comparison
    title = options.title.replace("{model}", _name(options.model))
    source = options.text.source if options.text else comparison.source
    states = states_of(comparison, options.distillation, options.exports, options.verifications)
    checks = checks_of(
        comparison,
        options.pruning,
        options.exports,
        options.verifications,
        options.backups,
        options.restored,
        options.max_perplexity_ratio,
    )
    charts = charts_of(comparison, states, options.pruning, options.distillation, options.backups)
    facts = _facts(options, source)
    content = {
        "format": _FORMAT,
        "title": title,
        "kind": comparison.kind,
        "states": states,
        "checks": checks,
        "charts": [c.plain() for c in charts],
        "facts": facts,
        "results": options.results,
    }
    shown = page.Page(
        title=title,
        lead=_lead(options, states),
        tiles=_tiles(states),
        states=states_table(states, comparison.kind, ""),
        note=_note(comparison, source, states),
        checks=checks,
        charts=charts,
        facts=Table("", ("", ""), list(facts.items())),
    )
    for path, text in ((options.html, page.render(shown)), (options.data, to_json(content))):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, overwrite=options.overwrite) as stream:
            stream.write(text.encode("utf-8"))
    failed = "; ".join(c.name for c in checks if not c.passed)
    return ReportResult(options.html, options.data, title, comparison.kind, tuple(states), tuple(checks), failed)


def states_table(states: "list[State] | tuple[State, ...]", kind: str, title: str) -> Table:
    """Return the states side by side."""
    word = "perplexity (agreement)" if kind == "agreement" else "perplexity"
    columns = ("state", "size", "parameters", word, "× parent", "KL", "same token", "decode tok/s")
    rows = [
        [
            s.name,
            format_bytes(s.size_bytes),
            f"{s.parameters:,}",
            _interval(s.perplexity),
            f"{s.perplexity_ratio:.3f}" if s.perplexity_ratio is not None else "–",
            _interval(s.kl),
            _interval(s.agreement, "share"),
            _rate(s.decode),
        ]
        for s in states
    ]
    return Table(title, columns, rows)


def _interval(estimate: Estimate | None, unit: str = "") -> str:
    if estimate is None:
        return "–"
    low, high = figure(estimate.low, unit), figure(estimate.high, unit)
    return f"{figure(estimate.value, unit)} [{low}, {high}]"


def _rate(rate: Rate | None) -> str:
    return f"{rate.tokens_per_second:,.0f} [{rate.low:,.0f}, {rate.high:,.0f}]" if rate else "–"


def _name(ref: str) -> str:
    """Return a model's name for people."""
    return ref if ref.startswith("hf:") else Path(ref).name or ref


def _lead(options: ReportOptions, states: list[State]) -> str:
    parent, last = options.comparison.models[0], options.comparison.models[-1]
    cut = (
        f"pruned by {100 * options.pruning.removed_share:.1f} % of its decoder's linear weights"
        if options.pruning
        else ""
    )
    ratio = last.perplexity_ratio
    text = "text of its own" if options.comparison.kind == "agreement" else "held-out text"
    back = f"recovered to {ratio.value:.3f} × the parent's perplexity on {text}" if ratio else ""
    shipped = ", ".join(s.name for s in states if s.name.startswith("GGUF"))
    parts = [p for p in (cut, back, f"exported as {shipped}" if shipped else "") if p]
    return f"A model of {parent.parameters:,} parameters, {', '.join(parts)}."


def _tiles(states: list[State]) -> list[page.Tile]:
    parent = states[0]
    last = next(s for s in reversed(states) if not s.name.startswith("GGUF"))
    smallest = min(states, key=lambda s: s.size_bytes)
    tiles = [
        page.Tile(
            "Smallest file",
            f"{parent.size_bytes / smallest.size_bytes:.2f} × smaller",
            f"{format_bytes(parent.size_bytes)} → {format_bytes(smallest.size_bytes)} ({smallest.name})",
        )
    ]
    if parent.perplexity and last.perplexity and last.perplexity_ratio:
        detail = f"{figure(parent.perplexity.value)} → {figure(last.perplexity.value)}"
        tiles.append(page.Tile("Perplexity", f"× {last.perplexity_ratio:.3f}", detail))
    if last.agreement:
        tiles.append(
            page.Tile("Same top token", figure(last.agreement.value, "share"), f"{last.name} against {parent.name}")
        )
    if parent.decode and last.decode:
        speed = last.decode.tokens_per_second / parent.decode.tokens_per_second
        detail = f"{parent.decode.tokens_per_second:,.0f} → {last.decode.tokens_per_second:,.0f} tokens/s"
        tiles.append(page.Tile("Writing speed", f"× {speed:.2f}", detail))
    return tiles


def _note(comparison: Comparison, source: str, states: list[State]) -> str:
    if comparison.kind == "agreement":
        text = (
            f"The text was sampled from the parent itself ({comparison.tokens:,} tokens), so these perplexities tell "
            "how well each state agrees with the parent, not how good a model it is."
        )
    else:
        text = f"Perplexity on {comparison.tokens:,} tokens of text that nothing was trained on ({source})."
    text += " In brackets: the 95 % interval over rows; for speed, the slowest and the fastest run."
    against = {s.measured_against for s in states if s.name.startswith("GGUF") and s.measured_against}
    if against:
        text += (
            f" KL and agreement of a GGUF are against {', '.join(sorted(against))}, which it was made of, in llama.cpp."
        )
    return text


def _facts(options: ReportOptions, source: str) -> dict[str, str]:
    """What the figures depend on; no time of day, so that the same results give the same report."""
    found = {"text": f"{source}, {options.comparison.tokens:,} tokens"}
    if options.pruning and options.pruning.plan:
        found["cut"] = options.pruning.plan
    if options.distillation:
        found["training"] = f"{options.distillation.steps:,} steps, best at {options.distillation.best_step:,}"
    found |= version_facts()
    speed = options.comparison.models[0].speed
    if speed:
        found["threads"] = str(speed.threads)
    return found
