"""Every command that is registered: the core's and those of the plugins of this package, found in the code."""

import functools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from apt.cli import lazy
from apt.plugins import build, host

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


class Leaf(NamedTuple):
    """A command that does something itself."""

    words: tuple[str, ...]
    command: Any

    def __str__(self) -> str:
        return " ".join(self.words)


@functools.cache
def commands() -> tuple[str, ...]:
    """The names of all commands, whatever the user has installed beside this package."""
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, APT_HOME=home, APT_NO_CACHE="1"):
        data = build.build()
    own = {p.name for p in data.plugins if p.source.startswith("built-in")} | {""}
    return tuple(c.name for c in data.commands if c.plugin in own)


def leaves(name: str) -> list[Leaf]:
    """A command's subcommands; itself where it has none."""
    record = host.current().data.command(name)
    assert record is not None, f"no plugin brings {name}"
    return list(_walk(lazy.load_command(record), (name,)))


@functools.cache
def all_leaves() -> tuple[Leaf, ...]:
    """Every command and subcommand."""
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, APT_HOME=home, APT_NO_CACHE="1"):
        host.refresh()
        found = tuple(leaf for name in commands() for leaf in leaves(name))
        host.refresh()
    return found


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[Leaf]:
    children = getattr(command, "commands", None)
    if children is None:
        yield Leaf(words, command)
        return
    for name, child in children.items():
        yield from _walk(child, (*words, name))


def help_of(leaf: Leaf) -> str:
    """The text of ``--help``, wide enough to be whole."""
    context = leaf.command.context_class(leaf.command, info_name=f"apt_model {leaf}", terminal_width=400)
    return leaf.command.get_help(context)


def examples(leaf: Leaf) -> list[str]:
    """The examples of a command's help: those that go on over several lines joined, comments left out."""
    block = help_of(leaf).partition("Examples:\n")[2].partition("\n\n")[0]
    block = re.sub(r"\\\n\s*", " ", block)
    block = re.sub(r"\n\s*\|", " |", block)
    return [line.strip() for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]


@functools.cache
def schema(name: str) -> Any:
    """A validator of a published schema."""
    import jsonschema

    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check_json(name: str, text: str) -> None:
    """Hold what ``--json`` printed against a published schema."""
    errors = schema(name).iter_errors(json.loads(text))
    faults = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in errors]
    assert not faults, f"docs/schemas/{name}.json: {faults}"
