"""Translating finished messages: English stands in the code, other languages in ``apt/assets/locale``.

The code says what it has to say in plain English; where a text leaves the program (:mod:`apt.console.output`, the help
of commands) it is looked up here, as a whole or as a template with values in it. A text that is not in the catalogue
stays as it is. In English nothing of this is imported.

In a translation ``{name}`` puts a value in as it is; ``{name:t}`` marks a value that is a message itself and is
translated too: a reason, the text of another error.
"""

import functools
import json
from pathlib import Path
from typing import Final

from apt.console.table import Table
from apt.console.templates import Template, parse

#: Columns of names, which are the user's and are never translated.
_NAMES: Final = frozenset(
    {"name", "model", "plugin", "command", "tensor", "package", "operation", "version", "text", "date", "place", "tag"}
)
_MAX_LENGTH: Final = 4000


class Catalogue:
    """The messages of one language."""

    def __init__(self, entries: dict[str, str]) -> None:
        self._whole = {k.replace("{{", "{").replace("}}", "}"): v for k, v in entries.items() if _plain(k)}
        self._whole = {k: parse(v).literals[0] for k, v in self._whole.items()}
        self._sources = {k: v for k, v in entries.items() if not _plain(k)}

    @functools.cached_property
    def _templates(self) -> dict[str, list[tuple[Template, str]]]:
        """Templates by their first word, the most telling first; below ``""`` those that begin with a value."""
        parsed = sorted(((parse(k), v) for k, v in self._sources.items()), key=lambda e: -e[0].weight())
        found: dict[str, list[tuple[Template, str]]] = {}
        for template, translation in parsed:
            word, space, _ = template.literals[0].partition(" ")
            found.setdefault(word if space else "", []).append((template, translation))
        return found

    def translate(self, text: str) -> str:
        """Return a message in this language; one that is not known comes back as it is."""
        found = self._known(text)
        return text if found is None else found

    def _known(self, text: str) -> str | None:
        if len(text) > _MAX_LENGTH or not text:
            return None
        if text in self._whole:
            return self._whole[text]
        found = self._templated(text)
        return found if found is not None else self._joined(text)

    def _templated(self, text: str) -> str | None:
        candidates = [*self._templates.get(text.partition(" ")[0], ()), *self._templates.get("", ())]
        for template, translation in sorted(candidates, key=lambda e: -e[0].weight()):
            values = template.match(text)
            if values is not None:
                target = parse(translation)
                for name, kind in zip(target.names, target.kinds, strict=True):
                    if kind == ":t" and values[name] != text:
                        values[name] = self.translate(values[name])
                return target.fill(values)
        return None

    def _joined(self, text: str) -> str | None:
        """Translate what the program joins of several messages: ``where: message``, ``message (hint)``, lists."""
        at = text.find(": ")
        while at >= 0:
            told = self._whole.get(text[at + 2 :]) or self._templated(text[at + 2 :])
            if told is not None:
                return f"{self._whole.get(text[:at], text[:at])}: {told}"
            at = text.find(": ", at + 1)
        head, colon, rest = text.partition(": ")
        if colon and " " in head and head in self._whole:  # what the system says: "Permission denied: path"
            return f"{self._whole[head]}: {rest}"
        if text.endswith(")") and " (" in text:
            head, _, hint = text[:-1].partition(" (")
            message, advice = self._known(head), self._known(hint)
            if message is not None:
                return f"{message}（{hint if advice is None else advice}）"
        for mark, join in (("; ", "；"), (", ", "、")):
            parts = [self._whole.get(p) or self._templated(p) for p in text.split(mark)] if mark in text else []
            if parts and all(parts):
                return join.join(p for p in parts if p)
        return None

    def table(self, table: Table) -> Table:
        """Return a table in this language: title, heads, and the cells of columns that do not hold names."""
        kept = [str(c) in _NAMES for c in table.columns]
        return Table(
            self.translate(table.title),
            [self.translate(c) for c in table.columns],
            [[c if k else self.translate(c) for c, k in zip(row, kept, strict=True)] for row in table.rows],
        )


def _plain(key: str) -> bool:
    return "{" not in key.replace("{{", "")


@functools.cache
def load(language: str) -> Catalogue:
    """Return the catalogue of a language; an empty one for English, or where the file is not there."""
    try:
        return Catalogue(json.loads(path(language).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return Catalogue({})


def path(language: str) -> Path:
    """Return the file that holds a language's messages."""
    return Path(__file__).parent.parent / "assets" / "locale" / f"{language}.json"
