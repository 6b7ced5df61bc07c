"""The examples of every command's help are run as they are written; ``--json`` is held against the schemas."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli_commands
import cli_examples
import pytest

from apt.console.errors import ExitCode

EXAMPLES = [(str(leaf), example) for leaf in cli_commands.leaves() for example in cli_commands.examples(leaf)]
#: A finding about the machine is no fault of the example.
FINDINGS = {"apt_model debug": ExitCode.CHECK_FAILED}


@pytest.fixture(scope="session")
def furniture(tmp_path_factory: pytest.TempPathFactory, new_llama: Callable[..., Path]) -> cli_examples.Furniture:
    return cli_examples.Furniture(tmp_path_factory.mktemp("furniture"), new_llama)


@pytest.fixture
def run_example(cli: Callable, hub: Any, furniture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run an example in a fresh directory, furnished with what it names."""

    def run(example: str, *more: str, number: int = 0) -> Any:
        here = tmp_path / f"here-{number}"
        here.mkdir()
        monkeypatch.chdir(here)
        for variable in ("HOME", "APT_HOME", "HF_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            monkeypatch.setenv(variable, str(here / variable.lower()))
        words = shlex.split(example.replace("{here}", str(here)))
        assert words[0] == "apt_model", f"{example}: not a call of apt_model, and not in cli_examples.SUBSTITUTES"
        furniture.furnish(words[1:], here, hub)
        return cli(*words[1:], *more)

    return run


# huggingface_hub hands a file to httpx in a way that httpx deprecates.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_example_runs(name: str, example: str, run_example: Callable) -> None:
    written = example
    if (substitute := cli_examples.SUBSTITUTES.get(example)) is not None:
        if substitute.example is None:
            pytest.skip(substitute.reason)
        example = substitute.example
    ran = run_example(example)
    assert ran.code in (ExitCode.OK, FINDINGS.get(written, ExitCode.OK)), ran.err
    assert ran.out.strip(), "neither an artefact nor a measurement is named"
    for text in ran.out, ran.err:
        assert "\x1b" not in text
        assert "\r" not in text
        assert "Traceback" not in text
    schema = name.replace(" ", "-")
    if "--json" in example.split():
        cli_commands.check_json(schema, ran.out)
    elif written not in cli_examples.ONCE:
        again = run_example(example, "--json", number=1)
        assert again.code == ran.code
        cli_commands.check_json(schema, again.out)


def test_every_command_is_held_against_its_schema() -> None:
    checked = {n for n, e in EXAMPLES if e not in cli_examples.ONCE and e.startswith("apt_model ")}
    checked |= {n for n, e in EXAMPLES if "--json" in e.split()}
    assert checked == {str(leaf) for leaf in cli_commands.leaves()}


def test_the_tables_name_examples_that_exist() -> None:
    known = {example for _, example in EXAMPLES}
    assert not set(cli_examples.SUBSTITUTES) - known
    assert not cli_examples.ONCE - known
    run = known - set(cli_examples.SUBSTITUTES)
    run |= {s.example for s in cli_examples.SUBSTITUTES.values() if s.example is not None}
    words = {part for example in run for word in shlex.split(example) for part in (word, word.partition("=")[2])}
    assert not set(cli_examples.PLACES) - words


@pytest.mark.parametrize("words", ["list", "info tiny", "plugin list"])
def test_a_real_pipe_gets_plain_text(words: str) -> None:
    command = [sys.executable, "-m", "apt_model", *words.split()]
    ran = subprocess.run(command, capture_output=True, timeout=60, cwd=Path(__file__).parents[2], check=False)
    assert ran.stdout
    assert not {0x1B, 0x0D} & set(ran.stdout + ran.stderr)
