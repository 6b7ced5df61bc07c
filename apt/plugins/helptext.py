"""The text of ``apt_model --help``, made once when the index is built."""

import re
import textwrap
from collections.abc import Iterable
from typing import Final

from apt.plugins.core import SECTIONS
from apt.plugins.records import CommandRecord, PluginRecord

_HEAD = """\
Usage: apt_model COMMAND [OPTIONS]

One command line from a language-model checkpoint to a smaller, proven, shipped
model. A MODEL is a directory, a name in the store (`apt_model list`), `tiny`
(the embedded one) or hf:owner/name[@revision]."""

_TAIL = """\
Options:
  --version             Show the version.
  --safe-mode           Before a command: run it without plugins of others.
  --trace-hooks         Before a command: tell what hooks of plugins cost.
  --install-completion  Install completion for the current shell.
  --show-completion     Show the completion script.
  --help                Show this text; after a command, its options.

Examples:
  apt_model quickstart
  apt_model info tiny
  apt_model prune tiny -o small --ratio 0.25

Exit codes: 0 done, 1 failed, 2 wrong call, 3 not found, 4 bad input,
5 unsupported, 6 missing dependency, 7 target exists, 8 cannot write,
9 network, 10 check failed, 130 interrupted."""

_WIDTH = 79


#: A line of a list: a name and what it means.
_ITEM: Final = re.compile(r"  (\S+  +)(\S.*)")


def render(commands: Iterable[CommandRecord], plugins: Iterable[PluginRecord], language: str = "en") -> str:
    """Lay out the help of the root."""
    english = _render(list(commands), plugins)
    return english if language == "en" else _translated(english, language)


def _render(commands: list[CommandRecord], plugins: Iterable[PluginRecord]) -> str:
    usable = {p.name for p in plugins if p.usable} | {""}
    column = min(24, max((len(c.name) for c in commands), default=0))
    parts = [_HEAD]
    for section in SECTIONS:
        lines = [_line(c.name, c.help, column) for c in commands if c.section == section and c.plugin in usable]
        if lines:
            parts.append("\n".join([f"{section}:", *lines]))
    lines = [
        _line(name, f"{plugin.reason}; mend it with: {plugin.mend}", column)
        for plugin in plugins
        if not plugin.usable and plugin.status != "disabled"
        for name in (plugin.commands or (plugin.name,))
    ]
    if lines:
        parts.append("\n".join(["Not usable:", *lines]))
    return "\n\n".join([*parts, _TAIL])


def _line(name: str, text: str, column: int) -> str:
    indent = " " * (column + 4)
    first = f"  {name:<{column}}  "
    if len(first) > len(indent):
        return textwrap.fill(f"{name}: {text}", _WIDTH, initial_indent="  ", subsequent_indent=indent)
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=indent) if text else first.rstrip()


def _translated(text: str, language: str) -> str:
    """Translate a finished help text: its paragraphs, and the items of its lists."""
    from apt.console import catalogue
    from apt.console.wrap import wrap

    told = catalogue.load(language).translate
    headings = {f"{section}:" for section in SECTIONS}
    shown = []
    for kind, name, words in blocks(text):
        if kind == "gap":
            shown.append("")
        elif kind == "line":
            shown.append(words)
        elif kind == "item":
            head = f"  {name}"
            shown.append(wrap(told(words), _WIDTH, head, " " * len(head)))
        elif words in headings:
            shown.append(told(words.removesuffix(":")) + "：")
        else:
            shown.append(wrap(told(words), _WIDTH))
    return "\n".join(shown)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Cut a help text into ``(kind, name, text)``: what is one message each, and the lines that are none.

    Kinds are ``text`` (a paragraph or a heading), ``item`` (of a list, with its padded name), ``line`` (an example) and
    ``gap`` (an empty line).
    """
    found: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        item = _ITEM.fullmatch(line)
        last = found[-1] if found else ("gap", "", "")
        if not line:
            found.append(("gap", "", ""))
        elif item is not None:
            found.append(("item", item[1], item[2]))
        elif last[0] == "item" and line.startswith("    "):
            found[-1] = ("item", last[1], f"{last[2]} {line.strip()}")
        elif line.startswith("  "):
            found.append(("line", "", line))
        elif last[0] == "text" and not last[2].startswith("Usage:"):
            found[-1] = ("text", "", f"{last[2]} {line}")
        else:
            found.append(("text", "", line))
    return found
