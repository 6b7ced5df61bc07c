"""The help of a command in another language than English: what Typer lays out, told and wrapped anew.

Typer makes help of a command's docstring, the help of its options and words of its own ("Usage:", "[required]").
All of them pass a formatter, so one formatter that asks the catalogue translates the whole page. Metavars (MODEL,
DIR) and the names of options stay: they are what the other texts refer to.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from apt.console import catalogue
from apt.console.output import display_width
from apt.console.wrap import wrap

#: What Typer puts behind the help of an option: ``help  [default: 8; x>=1]``; old versions escape the bracket.
_EXTRA: Final = re.compile(r"(.*?)(?:^|  )\\?\[([^\[\]]*)\]", re.DOTALL)


def prepare(command: Any, language: str) -> None:
    """Have the help of a command and of those below it written in a language."""
    made: Any = type(command).context_class
    formatter = type("Formatter", (_Formatter, made.formatter_class), {"language": language})
    command.context_class = type("Context", (made,), {"formatter_class": formatter})
    if command.help:
        command.short_help = catalogue.load(language).translate(_paragraphs(command.help)[0])
    for child in getattr(command, "commands", {}).values():
        prepare(child, language)


def _paragraphs(text: str) -> list[str]:
    return [p for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]


class _Formatter:
    """Mixed into Typer's own formatter."""

    language: str
    width: int
    current_indent: int
    write: Any

    def _told(self, text: str) -> str:
        return catalogue.load(self.language).translate(" ".join(text.split()))

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix=self._told("Usage:"))  # type: ignore[misc]

    def write_heading(self, heading: str) -> None:
        self.write(f"{'':>{self.current_indent}}{self._told(f'{heading}:')}\n")

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        shown = []
        for paragraph in _paragraphs(text):
            plain = paragraph.lstrip("\b\n")
            if plain.startswith("Examples:"):
                lines = plain.splitlines()
                shown.append("\n".join([indent + self._told(lines[0]), *(indent + line for line in lines[1:])]))
            else:
                shown.append(wrap(self._told(plain), self.width, indent, indent))
        self.write("\n\n".join(shown) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        column = min(max((display_width(first) for first, _ in rows), default=0), col_max) + col_spacing
        indent = " " * self.current_indent
        rest = indent + " " * column
        for first, second in rows:
            head = f"{indent}{first}" + " " * (column - display_width(first))
            if not second:
                self.write(head.rstrip() + "\n")
            elif display_width(first) > column - col_spacing:
                self.write(f"{indent}{first}\n" + wrap(self._described(second), self.width, rest, rest) + "\n")
            else:
                self.write(wrap(self._described(second), self.width, head, rest) + "\n")

    def _described(self, text: str) -> str:
        """Translate the help of an option and what Typer says of it in brackets."""
        found = _EXTRA.fullmatch(text.strip())
        if found is None:
            return self._told(text)
        extra = "；".join(self._told(part) for part in found[2].split("; "))
        return f"{self._told(found[1])} [{extra}]".strip()
