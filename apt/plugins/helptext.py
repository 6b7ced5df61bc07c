"""The text of ``apt_model --help``, made once when the index is built."""

import textwrap
from collections.abc import Iterable

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


def render(commands: Iterable[CommandRecord], plugins: Iterable[PluginRecord]) -> str:
    """Lay out the help of the root."""
    commands = list(commands)
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
