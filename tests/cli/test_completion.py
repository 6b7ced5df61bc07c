"""``apt_model completion``: the scripts, and putting them where a shell looks."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import ExitCode
from apt.plugins import completion_scripts

SHELLS = completion_scripts.SHELLS
FILES = {
    "bash": ["data/bash-completion/completions/apt_model", "data/bash-completion/completions/apt-model"],
    "zsh": ["data/zsh/site-functions/_apt_model"],
    "fish": ["config/fish/completions/apt_model.fish", "config/fish/completions/apt-model.fish"],
}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    return tmp_path


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_printed(shell: str, cli: Callable) -> None:
    ran = cli("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert f"completion of apt_model for {shell}" in ran.out.lower()
    assert "@PROGRAM@" not in ran.out
    assert json.loads(cli("completion", shell, "--json").out) == {"shell": shell, "text": ran.out}
    assert cli("--show-completion", shell).out == ran.out


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_installed_where_the_shell_looks(shell: str, cli: Callable, places: Path) -> None:
    planned = cli("completion", shell, "--install", "--dry-run", "--json")
    assert not (places / "data").exists() and not (places / "config").exists()
    ran = cli("completion", shell, "--install", "--json")
    told = json.loads(ran.out)
    assert told["files"] == json.loads(planned.out)["files"] == [str(places / f) for f in FILES[shell]]
    assert {Path(f).read_text() for f in told["files"]} == {cli("completion", shell).out}
    if shell == "zsh":
        assert f"fpath=({places}/data/zsh/site-functions $fpath)" in told["activate"]


def test_shell_is_that_of_the_user(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("completion").out == cli("--show-completion").out == cli("completion", "fish").out
    assert "apt_model.fish" in cli("--install-completion").out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    ran = cli("completion")
    assert (ran.code, ran.err) == (
        ExitCode.USAGE,
        "error: no completion for the shell 'tcsh' (one of bash, zsh, fish)\n",
    )
    monkeypatch.delenv("SHELL")
    assert cli("--install-completion").code == ExitCode.USAGE


def test_our_own_file_is_replaced_and_no_other(cli: Callable, places: Path) -> None:
    ours, other = (places / name for name in FILES["bash"])
    assert cli("completion", "bash", "--install").code == 0
    ours.write_text(ours.read_text() + "# older\n")
    assert cli("completion", "bash", "--install").code == 0
    assert "# older" not in ours.read_text()
    other.write_text("mine")
    ours.unlink()
    ran = cli("completion", "bash", "--install", "--json")
    assert (ran.code, other.read_text(), ours.exists()) == (ExitCode.TARGET_EXISTS, "mine", False)
    assert cli("completion", "bash", "--install", "--overwrite").code == 0
    assert other.read_text() == ours.read_text()


def test_a_place_that_cannot_be_written_is_told(cli: Callable, places: Path) -> None:
    (places / "data").write_text("a file")
    ran = cli("completion", "zsh", "--install")
    assert ran.code != 0 and len(ran.err.splitlines()) == 1 and str(places / "data") in ran.err


def test_program_of_the_script_is_one_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "it's $(touch pwned) \\ 模型"
    directory.mkdir()
    program = directory / "apt_model"
    program.write_text("")
    monkeypatch.setattr("sys.executable", str(directory / "python"))
    text = completion_scripts.script("bash").text
    (line,) = [line.strip() for line in text.splitlines() if "program=" in line and "type -P" in line]
    script = f'type() {{ false; }}; {line}; printf %s "$program"'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ran.stdout == str(program)
    assert (
        "set program '" + str(program).replace("\\", "\\\\").replace("'", "\\'") + "'"
        in completion_scripts.script("fish").text
    )
