"""Translating finished messages: English stands in the code, other languages in ``apt/assets/locale``.

The code says what it has to say in plain English; where a text leaves the program (:mod:`apt.console.output`, the help
of commands) it is looked up here, as a whole or as a template with values in it. A text that is not in the catalogue
stays as it is. In English nothing of this is imported.

In a translation ``{name}`` puts a value in as it is; ``{name:t}`` marks a value that is a message itself and is
translated too: a reason, the text of another error.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from apt.console.table import Table
from apt.console.templates import Template, parse

#: Columns of names, which are the user's and are never translated.
_NAMES: Final = frozenset(
    {"name", "model", "plugin", "command", "tensor", "package", "operation", "version", "text", "step", "tag"}
)
_MAX_LENGTH: Final = 4000
#: How deep messages stand in messages, and how many readings are kept.
_MAX_DEPTH: Final = 8
_MAX_KEPT: Final = 2000
#: Longer lists are names, not messages.
_MAX_PARTS: Final = 8

_WORD: Final = re.compile(r"[A-Za-z]{2}")


class _Reading(NamedTuple):
    """A translation; of several the smallest is taken.

    ``left`` is the number of characters that nothing says anything of, ``order`` less the more of the text is given.
    """

    left: int
    order: int
    text: str


class Catalogue:
    """The messages of one language."""

    def __init__(self, entries: dict[str, str]) -> None:
        self._whole = {k: v for k, v in entries.items() if "{" not in k}
        self._sources = {k: v for k, v in entries.items() if "{" in k}
        self._read_before: dict[tuple[int, str], _Reading | None] = {}

    @functools.cached_property
    def _templates(self) -> dict[str, list[tuple[str, Template, str]]]:
        """Templates by their first word, below ``""`` those that begin with a value; each behind its longest literal.

        Nearly all are sorted out by that literal, which is not in the text.
        """
        found: dict[str, list[tuple[str, Template, str]]] = {}
        for source, translation in self._sources.items():
            template = parse(source)
            word, space, _ = template.literals[0].partition(" ")
            longest = max(template.literals, key=len)
            found.setdefault(word if space else "", []).append((longest, template, translation))
        return found

    def translate(self, text: str) -> str:
        """Return a message in this language; one that is not known comes back as it is."""
        found = self._read(text)
        return text if found is None else found.text

    def _read(self, text: str, depth: int = 0) -> _Reading | None:
        """Return the reading of a text that leaves the least of it untranslated; ``None`` for an unknown text."""
        if text in self._whole:
            return _Reading(0, 0, self._whole[text])
        if depth > _MAX_DEPTH or len(text) > _MAX_LENGTH or _WORD.search(text) is None:
            return None
        if (depth, text) not in self._read_before:
            if len(self._read_before) > _MAX_KEPT:
                self._read_before.clear()
            readings = [*self._templated(text, depth), *self._labelled(text, depth), *self._listed(text, depth)]
            self._read_before[depth, text] = min(readings, default=None)
        return self._read_before[depth, text]

    def _templated(self, text: str, depth: int) -> Iterator[_Reading]:
        for word in {text.partition(" ")[0], ""}:
            for longest, template, translation in self._templates.get(word, ()):
                values = template.match(text) if longest in text else None
                if values is not None:
                    yield self._filled(template, values, parse(translation), depth)

    def _filled(self, template: Template, values: dict[str, str], target: Template, depth: int) -> _Reading:
        typed = {name for name, kind in zip(template.names, template.kinds, strict=True) if kind}
        messages = {name for name, kind in zip(target.names, target.kinds, strict=True) if kind == ":t"}
        left = 0
        for name, value in values.items():
            inner = self._read(value.strip(), depth + 1) if name in messages else None
            if inner is not None:
                values[name] = inner.text
            left += inner.left if inner is not None else 0 if name in typed else len(value)
        return _Reading(left, -template.weight(), target.fill(values))

    def _labelled(self, text: str, depth: int) -> Iterator[_Reading]:
        """Read what the program joins of two texts: ``where: message``, ``message: path``, ``message (hint)``."""
        head, colon, rest = text.partition(": ")
        if colon and " " in head and head in self._whole:  # what the system says: "Permission denied: path"
            yield _Reading(len(rest), 0, f"{self._whole[head]}：{rest}")
        at = text.find(": ")
        for _ in range(_MAX_PARTS):
            if at < 0:
                break
            head, rest = text[:at], text[at + 2 :]
            # Single words are names more often than messages: the label of anything, the end of a label.
            told = self._read(rest, depth + 1) if " " in rest or depth == 0 else None
            if told is not None:
                where = (self._read(head, depth + 1) if " " in head else None) or _Reading(at, 0, head)
                yield _Reading(told.left + where.left, 0, f"{where.text}：{told.text}")
                break  # what stands behind a later colon is a part of this
            at = text.find(": ", at + 1)
        if text.endswith(")") and " (" in text:
            head, _, hint = text[:-1].partition(" (")
            message = self._read(head, depth + 1)
            if message is None or " " not in head:  # a single word in front is a name
                message = None
                head, _, hint = text[:-1].rpartition(" (")
            advice = self._read(f"({hint})", depth + 1) or self._read(hint, depth + 1)
            if message is not None or advice is not None:
                first = message or _Reading(len(head), 0, head)
                second = advice or _Reading(len(hint), 0, hint)
                yield _Reading(first.left + second.left, 0, f"{first.text}（{second.text.strip('（）')}）")

    def _listed(self, text: str, depth: int) -> Iterator[_Reading]:
        """Read a list of texts each of which is known, or one text with a full stop put behind it."""
        if text.endswith(".") and not text.endswith(".."):
            told = self._read(text[:-1], depth + 1)
            if told is not None:
                yield _Reading(told.left, 0, f"{told.text}。")
        for mark, join in (("; ", "；"), (", ", "、")):
            parts = text.split(mark)
            if 1 < len(parts) <= _MAX_PARTS:
                best = self._cut(parts, mark, join, depth)
                if best is not None:  # of two readings that explain as much, the list of sentences
                    yield best._replace(order=-_MAX_LENGTH if mark == "; " else 0)

    def _cut(self, parts: list[str], mark: str, join: str, depth: int) -> _Reading | None:
        """Read a list whose texts may hold the mark between them themselves: the cut that leaves least is taken."""
        best: list[_Reading | None] = [_Reading(0, 0, "")]
        for end in range(1, len(parts) + 1):
            cuts = []
            for start in range(end):
                before, told = best[start], None
                if before is not None and end - start < len(parts):
                    told = self._read(mark.join(parts[start:end]), depth + 1)
                if before is not None and told is not None:
                    text = f"{before.text}{join}{told.text}" if start else told.text
                    cuts.append(_Reading(before.left + told.left, 0, text))
            best.append(min(cuts, default=None))
        return best[-1]

    def table(self, table: Table) -> Table:
        """Return a table in this language: title, heads, and the cells of columns that do not hold names."""
        kept = [str(c) in _NAMES for c in table.columns]
        return Table(
            self.translate(table.title),
            [self.translate(c) for c in table.columns],
            [[c if k else self.translate(c) for c, k in zip(row, kept, strict=True)] for row in table.rows],
        )


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
