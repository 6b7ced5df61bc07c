"""Matching a finished message against the templates of a catalogue.

A template is a text with ``{name}`` for each value; ``{name!r}`` stands for a quoted one, ``{name:d}`` for a figure.
A message is matched by its literal parts in order, without regular expressions made at run time: compiling hundreds of
them would cost more than the command.
"""

import re
from typing import Final, NamedTuple

_FIELD: Final = re.compile(r"\{\{|\}\}|\{(\w+)(!r|:d|:t)?\}")
#: Compiled on use: most messages have none of these, and compiling costs as much as reading the catalogue.
_QUOTED: Final = r"(?s)'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
#: How Python shows values that are no texts.
_OTHER_VALUE: Final = r"[(\[{<]|None|True|False|b'|\w*Path\("
_FIGURE: Final = r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan)%?"

#: A template with fewer given characters (``{operation} of {parent}``) fits much; its values are single words.
_WEAK: Final = 6

#: Places tried before a text with very many repetitions of a template's words is given up.
_MAX_TRIES: Final = 2000


class Template(NamedTuple):
    """A text cut at its values: ``literals`` has one entry more than ``names`` and ``kinds``."""

    literals: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]

    def weight(self) -> int:
        """Return how many characters are given: of two templates that fit, the heavier one says more."""
        return sum(map(len, self.literals))

    def match(self, text: str) -> dict[str, str] | None:
        """Return the values in a text that was made of this template; ``None`` for another text."""
        first, last = self.literals[0], self.literals[-1]
        if not text.startswith(first) or not text.endswith(last):
            return None
        if any(literal not in text for literal in self.literals):
            return None
        values = _Matcher(self, text).values(0, len(first))
        if values is not None and self.weight() < _WEAK and any(" " in value for value in values):
            return None
        return None if values is None else dict(zip(self.names, values, strict=True))

    def fill(self, values: dict[str, str]) -> str:
        """Put values in."""
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            parts += [values[name], literal]
        return "".join(parts)


class _Matcher:
    def __init__(self, template: Template, text: str) -> None:
        self._template = template
        self._text = text
        self._tries = 0

    def values(self, i: int, start: int) -> list[str] | None:
        """Return the values from number ``i`` on, the first of which begins at ``start``."""
        literals, text = self._template.literals, self._text
        if i == len(self._template.names):
            return [] if start == len(text) else None
        for end in self._ends(i, start):
            self._tries += 1
            if self._tries > _MAX_TRIES:
                return None
            rest = self.values(i + 1, end + len(literals[i + 1]))
            if rest is not None:
                return [text[start:end], *rest]
        return None

    def _ends(self, i: int, start: int) -> "list[int] | _Places":
        """Return where value number ``i`` may end: in front of the literal that follows it."""
        text, literal, kind = self._text, self._template.literals[i + 1], self._template.kinds[i]
        shape = re.compile(_FIGURE).match(text, start) if kind else None
        if kind == "!r" and shape is None:
            shape = re.compile(_QUOTED).match(text, start)
        if not kind or (kind == "!r" and shape is None and re.compile(_OTHER_VALUE).match(text, start)):
            if i + 1 == len(self._template.names):  # the last literal stands at the end
                end = len(text) - len(literal)
                return [end] if end >= start else []
            return _Places(text, literal, start)
        return [shape.end()] if shape is not None and text.startswith(literal, shape.end()) else []


class _Places:
    """The places of a literal in a text, from left to right, looked for as they are asked for."""

    def __init__(self, text: str, literal: str, start: int) -> None:
        self._text, self._literal, self._at = text, literal, start

    def __iter__(self) -> "_Places":
        return self

    def __next__(self) -> int:
        found = self._text.find(self._literal, self._at)
        if found < 0 or found > len(self._text):
            raise StopIteration
        self._at = found + 1
        return found


def parse(text: str) -> Template:
    """Cut a template at its values."""
    literals, names, kinds = [""], [], []
    position = 0
    for field in _FIELD.finditer(text):
        literals[-1] += text[position : field.start()]
        position = field.end()
        if field[1] is None:
            literals[-1] += field[0][0]
        else:
            names.append(field[1])
            kinds.append(field[2] or "")
            literals.append("")
    literals[-1] += text[position:]
    return Template(tuple(literals), tuple(names), tuple(kinds))
