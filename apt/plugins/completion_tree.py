"""The texts that completion reads: the tree of the shipped commands, and the index's section ``complete``.

Both have one form, which a few lines can search: a line ``@words`` opens a command (``@`` alone: the root), and below
it each line is one thing, its fields between tabs:

- ``s`` name, help: a subcommand;
- ``o`` names, values, help: an option, ``O`` one that may be repeated; no values: a switch;
- ``a`` values, nothing: an argument, ``A`` one that takes all the rest.

Values are the marks of :class:`apt.console.completes.Completes`; ``-`` is a value of which nothing is known. In the
section ``@%plugin`` and ``@%component`` open lists of names: state or kind, name, description.
"""

import enum
import inspect
import typing
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any, Final

from apt.console.completes import Completes
from apt.plugins.completion_words import harmless, shown
from apt.plugins.records import CommandRecord, IndexData
from apt.registry import CORE_COMPONENTS

#: Characters of a description; a line of a terminal has room for a name beside it.
_WIDTH: Final = 70
_UNKNOWN: Final = "-"
_HELP: Final = ("o", "--help", "", "Show the options.")
_ROOT: Final = (
    ("o", "--version", "", "Show the version."),
    ("o", "--safe-mode", "", "Before a command: run it without plugins of others."),
    ("o", "--trace-hooks", "", "Before a command: tell what hooks of plugins cost."),
    ("o", "--install-completion", "choices:bash,zsh,fish", "Install completion for the current shell."),
    ("o", "--show-completion", "choices:bash,zsh,fish", "Show the completion script."),
    ("o", "--help", "", "Show the commands."),
)


def section(data: IndexData) -> str:
    """Return what the index holds for completion: the usable commands, the plugins and the components by name.

    Nothing is imported: of what a foreign command takes only the options are known that its manifest lists.
    """
    plugins = {p.name: p for p in data.plugins}
    usable = [c for c in data.commands if _nameable(c.name) and (not c.plugin or plugins[c.plugin].usable)]
    components = [(c.kind, c.name, c.summary) for c in CORE_COMPONENTS]
    components += [(c.kind, c.name, c.summary) for c in data.components]
    parts = [
        _block("", [*(("s", c.name, c.help) for c in usable), *_ROOT]),
        *(_foreign(c) for c in usable if c.plugin and plugins[c.plugin].foreign),
        _block(
            "%plugin",
            (
                ("disabled" if p.status == "disabled" else "enabled", p.name, f"{p.status}: {p.description}")
                for p in data.plugins
                if _nameable(p.name)
            ),
        ),
        _block("%component", (c for c in components if _nameable(c[1]))),
    ]
    return "\n" + "".join(parts)


def _foreign(record: CommandRecord) -> str:
    """Return the block of a foreign command: paths, and the options of its manifest.

    ``--loud`` is a switch, ``--name=`` takes any value, ``--type=f16,q8_0`` one of these.
    """
    lines = []
    for option in record.options:
        name, equals, choices = option.partition("=")
        if name.startswith("-") and _nameable(name.lstrip("-")) and not any(c.isspace() for c in choices):
            values = f"choices:{choices}" if choices else _UNKNOWN if equals else ""
            lines.append(("o", name, values, ""))
    return _block(record.name, [("A", "file", ""), *lines, _HELP])


def _nameable(name: str) -> bool:
    """Whether a name can be offered: one word, no option, none of the form's own signs."""
    return harmless(name) and not name.startswith(("-", "%")) and not any(c.isspace() for c in name)


def tree(commands: Iterable[tuple[str, Any]]) -> str:
    """Return the tree of commands that are ready for Typer, by name."""
    text = "".join(block for name, command in commands for block in _blocks(command, name))
    return f"Generated from the code by `make docs`; the form: completion_tree.py.\n{text}"


def _blocks(command: Any, words: str) -> Iterator[str]:
    children: dict[str, Any] = getattr(command, "commands", {})
    lines = [("s", name, _first_line(child.help or "")) for name, child in children.items()]
    values = {} if children else _values(command.callback)
    yield _block(words, [*lines, *(_parameter(p, values.get(p.name, "")) for p in command.params), _HELP])
    for name, child in children.items():
        yield from _blocks(child, f"{words} {name}")


def _parameter(parameter: Any, values: str) -> tuple[str, ...]:
    """Return the line of an option or argument, by what Typer's parameters say in all its versions."""
    if parameter.param_type_name == "argument":
        return "A" if parameter.nargs == -1 else "a", values or _UNKNOWN, ""
    names = " ".join([*parameter.opts, *parameter.secondary_opts])
    return (
        "O" if parameter.multiple else "o",
        names,
        "" if parameter.is_flag else values or _UNKNOWN,
        parameter.help or "",
    )


def _values(function: Any) -> dict[str, str]:
    """Return what the parameters of a command's function take, as far as it is known: by their marks, else types."""
    found = {}
    for name, hint in typing.get_type_hints(inspect.unwrap(function), include_extras=True).items():
        marks = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Completes)]
        found[name] = " ".join(value for mark in marks for value in mark.values) or _of_type(hint)
    return found


def _of_type(hint: Any) -> str:
    """Return the mark that a type says by itself; what holds another (``list[X]``, ``X | None``) says what it says."""
    if typing.get_origin(hint) is typing.Literal:
        return Completes(f"choices:{','.join(map(str, typing.get_args(hint)))}").values[0]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return Completes(f"choices:{','.join(str(member.value) for member in hint)}").values[0]
    if isinstance(hint, type) and issubclass(hint, PurePath):
        return "file"
    inner = typing.get_args(hint)
    return next((mark for part in inner if (mark := _of_type(part))), "")


def _block(words: str, lines: Iterable[tuple[str, ...]]) -> str:
    return "".join(
        f"{line}\n" for line in [f"@{words}", *("\t".join([*line[:-1], _clean(line[-1])]) for line in lines)]
    )


def _clean(text: str) -> str:
    """Return a description as one line of what a terminal can show, cut to length."""
    text = " ".join(shown(text).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
