"""The texts that completion reads: the tree of the shipped commands, and the index's section ``complete``.

Both have one form, which a few lines can search: a line ``@words`` opens a command (``@`` alone: the root), and below
it each line is one thing, its fields between tabs:

- ``s`` name, help: a subcommand;
- ``o`` names, values, help: an option, ``O`` one that may be repeated; no values: a switch;
- ``a`` values, help: an argument, ``A`` one that takes all the rest.

Values are the marks of :class:`apt.console.completes.Completes`; ``-`` is a value of which nothing is known. In the
section ``@%plugin`` and ``@%component`` open lists of names: state or kind, name, description.
"""

import inspect
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Final

from apt.console.completes import Completes
from apt.plugins.completion_words import harmless
from apt.plugins.records import CommandRecord, IndexData
from apt.registry import CORE_COMPONENTS

#: Characters of a description; a line of a terminal has room for a name beside it.
_WIDTH: Final = 70
_UNKNOWN: Final = "-"
_HELP: Final = ("o", "--help", "", "Show the options.")
_ROOT: Final = (
    ("o", "--version", "", "Show the version."),
    ("o", "--install-completion", "choices:bash,zsh,fish", "Install completion for the current shell."),
    ("o", "--show-completion", "choices:bash,zsh,fish", "Show the completion script."),
    ("o", "--help", "", "Show the commands."),
)


def section(data: IndexData) -> str:
    """Return what the index holds for completion: the usable commands, the plugins and the components by name.

    Nothing is imported: what a foreign command takes is not known here, and paths are offered.
    """
    states = {p.name: p.status for p in data.plugins}
    sources = {p.name: p.source for p in data.plugins}
    usable = [c for c in data.commands if _nameable(c.name) and states.get(c.plugin, "ready") == "ready"]
    components = [(c.kind, c.name, c.summary) for c in CORE_COMPONENTS]
    components += [(c.kind, c.name, c.summary) for c in data.components]
    parts = [
        _block("", [*(("s", c.name, c.help) for c in usable), *_ROOT]),
        *(_foreign(c) for c in usable if not sources.get(c.plugin, "built-in").startswith("built-in")),
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
    return _block(record.name, [("A", "file", ""), _HELP])


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
    marks = {} if children else _marks(command.callback)
    yield _block(words, [*lines, *(_parameter(p, marks.get(p.name, "")) for p in command.params), _HELP])
    for name, child in children.items():
        yield from _blocks(child, f"{words} {name}")


def _parameter(parameter: Any, marks: str) -> tuple[str, ...]:
    """Return the line of an option or argument, as Click describes it."""
    text = getattr(parameter, "help", "") or ""
    if parameter.param_type_name == "argument":
        return "A" if parameter.nargs == -1 else "a", marks or _of_type(parameter.type), text
    names = [*parameter.opts, *parameter.secondary_opts]
    values = "" if parameter.is_flag else marks or _of_type(parameter.type)
    return "O" if parameter.multiple else "o", " ".join(names), values, text


def _of_type(kind: Any) -> str:
    """Return the marks that a type says by itself."""
    if choices := [str(getattr(choice, "value", choice)) for choice in getattr(kind, "choices", ())]:
        return Completes(f"choices:{','.join(choices)}").values[0]
    return "file" if kind.name in ("path", "file") else _UNKNOWN


def _marks(function: Any) -> dict[str, str]:
    """Return the marks on the parameters of a command's function, by name."""
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    found = {}
    for name, hint in hints.items():
        marks = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Completes)]
        if marks:
            found[name] = " ".join(value for mark in marks for value in mark.values)
    return found


def _block(words: str, lines: Iterable[tuple[str, ...]]) -> str:
    return "".join(
        f"{line}\n" for line in [f"@{words}", *("\t".join([*line[:-1], _clean(line[-1])]) for line in lines)]
    )


def _clean(text: str) -> str:
    """Return a description as one line of what a terminal can show, cut to length."""
    text = " ".join("".join(c for c in text if c.isspace() or harmless(c)).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
