"""What a start costs: counted in modules, which do not depend on the machine's load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

READY = [
    ["--version"],
    ["--help"],
    ["plugin", "list"],
    ["plugin", "list", "--json"],
    ["__complete", "zsh", "1", "info", ""],
    ["__complete", "bash", " :=", "apt_model prune tiny --strategy=s", ""],
]


def run(*words: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-m", "apt_model", *words]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, check=False)


def imported(ran: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("words", READY, ids=" ".join)
def test_ready_answers_import_next_to_nothing(words: list[str]) -> None:
    cold = run(*words)
    assert (cold.returncode, cold.stderr) == (0, "")
    warm = run(*words, flags=("-X", "importtime"))
    assert warm.stdout == cold.stdout
    names = imported(warm) - {"imported package"}
    assert not names & {"typer", "click", "json", "typing", "pathlib", "importlib.metadata", "pluggy", "dataclasses"}
    assert len(names) <= 64


@pytest.mark.parametrize("words", READY[1:], ids=" ".join)
def test_ready_answers_equal_those_of_the_whole_program(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ready = [run(*words).stdout for _ in range(2)]
    monkeypatch.setenv("APT_NO_CACHE", "1")
    assert [run(*words).stdout] * 2 == ready


@pytest.mark.parametrize(
    "words",
    [
        ["plugin", "info", "ollama", "--json"],
        ["list", "--json"],
        ["info", "tiny", "--json"],
        ["size", "tiny", "--json"],
        ["prune", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    run("--help")
    ran = run(*words, flags=("-X", "importtime"))
    assert ran.returncode == 0
    assert not imported(ran) & {"torch", "transformers", "numpy", "pydantic", "datasets", "boto3", "rich", "gguf"}


def test_output_that_nobody_reads_ends_quietly() -> None:
    run("--help")
    root = Path(__file__).parents[2]
    for words in ("--help", "plugin info ollama"):
        script = f"{sys.executable} -m apt_model {words} | true; exit ${{PIPESTATUS[0]}}"
        ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=root, check=False)
        assert ran.stderr == ""
        assert ran.returncode in (0, 141)


def test_ascii_terminal_is_no_fault() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    root = Path(__file__).parents[2]
    for words in (["--help"], ["plugin", "list"]):
        ran = subprocess.run(
            [sys.executable, "-m", "apt_model", *words], capture_output=True, cwd=root, env=environment, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
