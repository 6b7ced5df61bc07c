"""What holds for every command: help with examples, wrong calls, no option that nobody reads.

That the examples run and that ``--json`` keeps to its schema is in ``test_examples.py``.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

import cli_commands
import pytest

from apt.console.output import EMITTED
from apt.plugins.core import CORE_COMMANDS

COMMANDS = cli_commands.commands()
LEAVES = cli_commands.leaves()


def test_the_commands_are_found() -> None:
    of_plugins = {"huggingface", "cloud-storage", "ollama", "distill", "prune"}
    assert {c.name for c in CORE_COMMANDS} | of_plugins <= {*COMMANDS}
    assert {leaf.words[0] for leaf in LEAVES} == {name for name, reason in COMMANDS.items() if not reason}


def test_a_command_that_cannot_be_checked_here_is_not_forgotten() -> None:
    if unready := [f"{name}: its plugin {reason}" for name, reason in COMMANDS.items() if reason]:
        pytest.skip("; ".join(unready))


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_help_has_worked_examples_of_the_command(leaf: cli_commands.Leaf, cli: Callable) -> None:
    ran = cli(*leaf.words, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    examples = ran.out.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert f"apt_model {leaf}" in "\n".join(examples), "no examples, or those of another command"
    # One example a line; a longer one goes on after a backslash or a pipe.
    assert all(re.match(r" +(apt_model|make|cat|[|\\]|--|-\w|export|ollama|#|\w+=)", e) for e in examples), examples
    assert "--json" in ran.out


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_help_says_what_each_parameter_is(leaf: cli_commands.Leaf) -> None:
    text = cli_commands.help_of(leaf)
    assert len(re.findall(r"arguments:", text, re.IGNORECASE)) <= 1, "the arguments are listed twice"
    shown = " ".join(text.split())
    for parameter in leaf.command.params:
        assert parameter.help, f"{parameter.name} has no help"
        assert " ".join(parameter.help.split()) in shown


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_a_wrong_call_is_one_line_and_one_object(leaf: cli_commands.Leaf, cli: Callable) -> None:
    ran = cli(*leaf.words, "--no-such-option")
    assert (ran.code, ran.out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*--no-such-option[^\n]*\n", ran.err)
    ran = cli(*leaf.words, "--no-such-option", "--json")
    assert ran.code == 2
    cli_commands.check_json("error", ran.out)


def _required(leaf: cli_commands.Leaf) -> list[str]:
    return [p.name for p in leaf.command.params if p.required]


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if _required(leaf)], ids=str)
def test_what_is_missing_is_told_in_one_line(leaf: cli_commands.Leaf, cli: Callable) -> None:
    ran = cli(*leaf.words, "--json")
    assert ran.code == 2
    assert re.fullmatch(r"error: Missing [^\n]*\n", ran.err)
    cli_commands.check_json("error", ran.out)


#: A call of a command that fails past its options, with the exit code; one for each way of failing.
FAILURES = [
    ("info ./nowhere", 3),
    ("test tiny --text nowhere.txt", 3),
    ("run nowhere.yaml", 3),
    ("plugin info ollamaa", 3),
    ("plugin enable nothing", 3),
    ("compare tiny", 2),
    ("distill --teacher tiny --student tiny -o out --alpha 2", 2),
    ("prune tiny -o out --ratio 1.5", 2),
    ("ollama export tiny -o out --type q1", 2),
    ("cloud-storage upload tiny --platform gdrive", 5),
    ("cloud-storage list --from ./nowhere", 3),
    ("huggingface import ./nowhere -o out", 3),
]


@pytest.mark.parametrize(("words", "code"), FAILURES, ids=[words for words, _ in FAILURES])
def test_a_failure_keeps_to_the_schema_of_errors(words: str, code: int, cli: Callable, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli(*words.split(), "--json")
    assert ran.code == code, ran.err
    cli_commands.check_json("error", ran.out)
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_every_declared_option_is_read(leaf: cli_commands.Leaf) -> None:
    function = inspect.unwrap(leaf.command.callback)
    read = _names_read(function)
    unread = [p.name for p in leaf.command.params if p.name not in read and p.name != "help"]
    assert not unread, f"nobody reads {unread}"


def _names_read(function: Any) -> set[str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_every_command_declares_what_it_emits(leaf: cli_commands.Leaf) -> None:
    assert getattr(leaf.command.callback, EMITTED, ()), "declare the results: @output.emits(…)"
    assert (cli_commands.SCHEMAS / f"{'-'.join(leaf.words)}.json").is_file(), "make docs"
