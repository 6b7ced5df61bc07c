"""Every command that is registered: the core's and those of the plugins of this package, found in the code."""

import functools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _empty_home() -> Iterator[None]:
    """Leave out of sight what the user has installed beside this package."""
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, APT_HOME=home, APT_NO_CACHE="1"):
        host.refresh()
        yield
        host.refresh()


@functools.cache
def commands() -> dict[str, str]:
    """All commands of this package by name, each with the reason why it cannot be used here; empty where it can."""
    with _empty_home():
        data = build.build()
    own = {p.name: "" if p.status == "ready" else p.reason for p in data.plugins if p.source.startswith("built-in")}
    own[""] = ""  # the core
    return {c.name: own[c.plugin] for c in data.commands if c.plugin in own}


@functools.cache
def leaves() -> tuple[Leaf, ...]:
    """Every command and subcommand that can be used here."""
    with _empty_home():
        records = [host.current().data.command(name) for name, reason in commands().items() if not reason]
        return tuple(leaf for record in records for leaf in _walk(lazy.load_command(record), (record.name,)))


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
