"""What holds for every command: examples, `--json`, unknown options refused, no option that nobody reads."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apt.cli import lazy
from apt.plugins import host
from apt.plugins.core import CORE_COMMANDS

COMMANDS = [c.name for c in CORE_COMMANDS] + ["huggingface", "cloud-storage", "ollama", "distill", "prune"]


def leaves(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name, child in children.items():
        yield from leaves(child, [*words, name])


def load(name: str) -> list[tuple[list[str], Any]]:
    record = host.current().data.command(name)
    assert record is not None, f"no plugin brings {name}"
    return list(leaves(lazy.load_command(record), [name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_worked_examples_of_the_command(name: str, cli: Callable) -> None:
    for words, _ in load(name):
        ran = cli(*words, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert "Example" in ran.out, f"{words}: no examples"
        assert f"apt_model {' '.join(words)}" in ran.out.partition("Example")[2], (
            f"{words}: examples of another command"
        )
        assert "\x1b" not in ran.out
        examples = ran.out.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
        assert examples, words
        # One example a line; a longer one goes on after a backslash or a pipe.
        assert all(re.match(r" +(apt_model|make|cat|[|\\]|--|-\w|export|ollama|#|\w+=)", e) for e in examples), examples
        assert "--json" in ran.out, f"{words}: no --json"


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_option_is_a_wrong_call(name: str, cli: Callable) -> None:
    for words, _ in load(name):
        ran = cli(*words, "--no-such-option")
        assert (ran.code, ran.out) == (2, ""), words
        assert ran.err.startswith("error: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_declared_option_is_read(name: str) -> None:
    for words, command in load(name):
        function = inspect.unwrap(command.callback)
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        if "locals" in read:
            continue
        unread = [p.name for p in command.params if p.name not in read and p.name != "help"]
        assert not unread, f"{words}: nobody reads {unread}"
