"""The HTML page: one file, no script, no request; its content security policy forbids both."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apt.console.table import Table
from apt.report import svg
from apt.report.charts import Chart
from apt.report.summary import Check

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows, from top to bottom."""

    title: str
    lead: str
    tiles: Sequence[Tile]
    states: Table
    note: str
    checks: Sequence[Check]
    charts: Sequence[Chart]
    facts: Table


@dataclass(frozen=True, slots=True)
class Part:
    """A headed table of a sheet, and what is said below it."""

    title: str
    table: Table
    kind: str = "facts"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page of tables and charts in any language.

    :param words: translates the page's own phrases.
    :param parts: below the charts; ``verdict`` above them.
    """

    title: str
    lead: str
    tiles: Sequence[Tile]
    parts: Sequence[Part]
    charts: Sequence[Chart]
    lang: str
    words: Callable[[str], str]
    verdict: Sequence[Part] = ()


def render_sheet(sheet: Sheet) -> str:
    """Return the whole HTML document of a sheet."""
    charts = "".join(_figure(c, sheet.words("Table")) for c in sheet.charts)
    parts = [_header(sheet), *(_part(p, f"verdict-{i}") for i, p in enumerate(sheet.verdict))]
    parts += [f'<section class="charts" aria-label="{_text(sheet.words("Charts"))}">{charts}</section>']
    parts += [_part(p, f"part-{i}") for i, p in enumerate(sheet.parts)]
    return _document(sheet.title, parts, sheet.lang)


def _part(part: Part, anchor: str) -> str:
    told = f'<p class="note">{_text(part.note)}</p>' if part.note else ""
    return _section(part.title, _table(part.table, part.kind) + told, anchor=anchor)


def render(page: Page) -> str:
    """Return the whole HTML document."""
    parts = [
        _header(page),
        _section("States", _table(page.states, "states") + f'<p class="note">{_text(page.note)}</p>'),
        *([_section("Checks", _checks(page.checks))] if page.checks else []),
        '<section class="charts" aria-label="Charts">' + "".join(_figure(c) for c in page.charts) + "</section>",
        _section("How it was made", _table(page.facts, "facts")),
    ]
    return _document(page.title, parts, "en")


def _document(title: str, parts: Sequence[str], lang: str) -> str:
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        f'<!DOCTYPE html>\n<html lang="{lang}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(page: Page | Sheet) -> str:
    tiles = "".join(
        f"<div class=tile><dt>{_text(t.label)}</dt><dd><strong>{_text(t.value)}</strong>"
        f"<span>{_text(t.detail)}</span></dd></div>"
        for t in page.tiles
    )
    shown = f'<dl class="tiles">{tiles}</dl>' if tiles else ""
    return f'<header><h1>{_text(page.title)}</h1><p class="lead">{_text(page.lead)}</p>{shown}</header>'


def _section(title: str, content: str, anchor: str = "") -> str:
    anchor = _text(anchor or "-".join(title.lower().split()))
    heading = f'<h2 id="{anchor}-h">{_text(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-h">{heading}{content}</section>'


def _figure(chart: Chart, table_word: str = "Table") -> str:
    table = chart.table()
    return (
        f'<figure id="{_text(chart.id)}"><figcaption><h3>{_text(chart.title)}</h3>'
        f"<p>{_text(chart.y_label)}</p></figcaption>"
        f"{svg.legend(chart)}{svg.draw(chart)}"
        f"<details><summary>{_text(table_word)}</summary>"
        f"{_table(table, 'figures', caption=chart.description)}</details></figure>"
    )


def _checks(checks: Sequence[Check]) -> str:
    items = "".join(
        f'<li class="{"passed" if c.passed else "failed"}"><b>{"passed" if c.passed else "FAILED"}</b>'
        f"<span>{_text(c.name)}</span><small>{_text(c.found)}</small></li>"
        for c in checks
    )
    return f'<ul class="checks">{items}</ul>'


def _table(table: Table, kind: str, caption: str = "") -> str:
    head = "".join(f'<th scope="col">{_text(c)}</th>' for c in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(f"<th scope=row>{_cell(v)}</th>" if i == 0 else f"<td>{_cell(v)}</td>" for i, v in enumerate(row))
        + "</tr>"
        for row in table.rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    told = f"<caption>{_text(caption)}</caption>" if caption else ""
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{told}{head}<tbody>{rows}</tbody></table></div>'


def _cell(value: str) -> str:
    """A value, its interval in small print below it."""
    main, bracket, interval = value.partition(" [")
    return f"{_text(main)} <small>[{_text(interval)}</small>" if bracket and interval.endswith("]") else _text(value)


def _text(text: str) -> str:
    safe = "".join(c if c in "\t\n\r" or c >= " " else "\ufffd" for c in str(text))
    return html.escape(safe, quote=True)
