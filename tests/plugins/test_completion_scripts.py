"""The scripts in the shells that are installed: what the Tab key makes of a line."""

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "zsh", "fish")
#: Names that would run something in a shell that read them as more than a word.
HOSTILE_MODEL = "$(touch pwned) 模型"
HOSTILE_COMPONENT = "zz`touch>pwned`$(touch>pwned);touch>pwned"
LEFT = "\x1b[D"
DUMP = "\x07"

#: How each shell is started: make the script known, and write the line that is being edited to a file at Ctrl-G.
START = {
    "bash": """
        PS1='READY> '; bind 'set enable-bracketed-paste off'; bind 'set bell-style none'
        dump() { printf '%s' "$READLINE_LINE" > dumped.part; mv dumped.part dumped; }
        bind -x '"\\C-g": dump'
        LOAD
    """,
    "zsh": """
        PS1='READY> '; fpath=("$XDG_DATA_HOME/zsh/site-functions" $fpath)
        autoload -Uz compinit; compinit -u -D; unsetopt zle_bracketed_paste beep
        dump() { print -rn -- "$BUFFER" > dumped.part; mv dumped.part dumped }
        zle -N dump; bindkey -e; bindkey '^G' dump
        LOAD
    """,
    "fish": """
        function fish_prompt; echo 'READY> '; end
        function dump; commandline -b | string collect > dumped.part; mv dumped.part dumped; end
        bind \\cg dump
        LOAD
    """,
}

#: fish wants the terminal to be the one that controls it.
ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Shell:
    """An interactive shell on a terminal of its own, in an empty home."""

    def __init__(self, name: str, load: str, directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.directory = directory
        start = directory / "start"
        start.write_text(START[name].replace("LOAD", load))
        (directory / ".zshrc").write_text(START["zsh"].replace("LOAD", load))
        command = {
            "bash": ["bash", "--noprofile", "--rcfile", "start", "-i"],
            "zsh": ["zsh", "-d", "-i"],
            "fish": ["fish", "-i", "-C", "source ./start"],
        }[name]
        self.terminal, slave = pty.openpty()
        termios.tcsetwinsize(slave, (50, 150))
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""
        try:
            self._read_until(lambda: b"READY> " in self.seen, "the prompt")
        except AssertionError:
            self.close()
            raise

    def _read_until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end, f"{self.name} did not show {what}: {self.seen!r}"
            if select.select([self.terminal], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.terminal, 65536)

    def complete(self, typed: str) -> str:
        """Type something and the Tab key, and return the line then."""
        dumped = self.directory / "dumped"
        dumped.unlink(missing_ok=True)
        os.write(self.terminal, f"{typed}\t{DUMP}".encode())
        self._read_until(dumped.exists, "the line")
        os.write(self.terminal, b"\x05\x15")  # to the end, and all of it away
        return dumped.read_text().rstrip("\n")

    def close(self) -> None:
        os.close(self.terminal)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def scene(tmp_path: Path, apt_home: Path, dropin: Callable, plugin_source: Callable) -> Path:
    """A directory to type in; models, a plugin and files with names that must stay names."""
    for name in (HOSTILE_MODEL, "我的模型", 'it\'s "mine"!'):
        (apt_home / "models" / name).mkdir(parents=True)
    (tmp_path / "hf-home/hub/models--Qwen--Qwen2.5-0.5B").mkdir(parents=True)
    hostile = "`touch pwned` $(touch pwned) %F{red}\x1b[31m; touch pwned"
    component = f"""
    def register_components(self, registry):
        registry.add_component("strategy", {HOSTILE_COMPONENT!r}, "os:getcwd", summary={hostile!r})
    """
    dropin("hostile.py", plugin_source("hostile", body=component).replace("'Say hello.'", repr(hostile)))
    dropin("refused.py", plugin_source("refused", command=f"xx{HOSTILE_MODEL}"))
    place = tmp_path / "place"
    (place / "out dir $(touch pwned)").mkdir(parents=True)
    (place / "my recipe.yaml").write_text("")
    return place


@pytest.fixture
def start(scene: Path, tmp_path: Path) -> Iterator[Callable[[str, str], Shell]]:
    """Start a shell, given its name and the words after ``completion NAME`` that bring the script about."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt_model", "apt-model"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m apt_model "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "HOME": str(scene),
        "ZDOTDIR": str(scene),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }
    started = []

    def begin(name: str, how: str = "") -> Shell:
        if shutil.which(name) is None:
            assert name != "bash", "bash is everywhere"
            pytest.skip(f"{name} is not installed")
        command = [programs / "apt_model", "completion", name, *how.split()]
        ran = subprocess.run(command, env=environment, capture_output=True, check=True)
        (scene / "script").write_bytes(ran.stdout)
        installed = {"bash": 'source "$XDG_DATA_HOME/bash-completion/completions/apt_model"', "zsh": "", "fish": ""}
        started.append(Shell(name, installed[name] if how else "source ./script", scene, environment))
        return started[-1]

    yield begin
    for shell in started:
        shell.close()


def words(shell: Shell, line: str) -> list[str]:
    """Have the shell read a line, with the quote closed that may be open; whatever a name made of it would run now."""
    option = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell.name]
    for quote in ("", "'", '"'):
        command = [shell.name, option, "-c", f"printf '%s\\n' {line.partition(' ')[2]}{quote}"]
        ran = subprocess.run(command, cwd=shell.directory, capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            return ran.stdout.splitlines()
    return [line]


#: What is typed before the Tab key → the words of the line after it, and whether a space ends the line.
TYPED = [
    ("pru", ["prune"]),
    ("plugin ins", ["plugin", "install"]),
    ("cloud-storage up", ["cloud-storage", "upload"]),
    ("info ti", ["info", "tiny"]),
    ("info 我", ["info", "我的模型"]),
    ("info hf:Q", ["info", "hf:Qwen/Qwen2.5-0.5B"]),
    ("info hf", ["info", "hf:Qwen/Qwen2.5-0.5B"]),
    ("info \\$", ["info", HOSTILE_MODEL]),
    ("info '$", ["info", HOSTILE_MODEL]),
    ('info "\\$(to', ["info", HOSTILE_MODEL]),
    ("info it", ["info", 'it\'s "mine"!']),
    ("info -- ti", ["info", "--", "tiny"]),
    ("prune tiny --strategy=str", ["prune", "tiny", "--strategy=structured"]),
    ("prune tiny --strategy str", ["prune", "tiny", "--strategy", "structured"]),
    ("compare --text=tiny 'my-model' ti", ["compare", "--text=tiny", "my-model", "tiny"]),
    ("quickstart --model=hf:Q", ["quickstart", "--model=hf:Qwen/Qwen2.5-0.5B"]),
    ("run my", ["run", "my recipe.yaml"]),
    ("prune tiny -o out", ["prune", "tiny", "-o", "out dir $(touch pwned)/"]),
    ("prune tiny --output=out", ["prune", "tiny", "--output=out dir $(touch pwned)/"]),
    ("plugin disable host", ["plugin", "disable", "hostile"]),
    ("info tiny --js", ["info", "tiny", "--json"]),
    ("info tiny --json --js", ["info", "tiny", "--json", "--js"]),
    ("prune --strategy zz", ["prune", "--strategy", HOSTILE_COMPONENT]),
    ("hos", ["hostile-command"]),
    ("hostile-command --he", ["hostile-command", "--help"]),
    ("hostile-command my", ["hostile-command", "my recipe.yaml"]),
    ("xx", ["xx"]),
    ('quickstart --model="hf:Q', ["quickstart", "--model=hf:Qwen/Qwen2.5-0.5B"]),
    ("quickstart --model='我", ["quickstart", "--model=我的模型"]),
    ("quickstart --text=emb", ["quickstart", "--text=embedded"]),
    ("info hf:Qwen/", ["info", "hf:Qwen/Qwen2.5-0.5B"]),
    ("--sho", ["--show-completion"]),
    ("completion f", ["completion", "fish"]),
    ("plugin info oll", ["plugin", "info", "ollama-export"]),
    ("run ./my", ["run", "./my recipe.yaml"]),
    ("run ./my\\ r", ["run", "./my recipe.yaml"]),
    ("info 我的模型 --q", ["info", "我的模型", "--quiet"]),
    (f"compare 我 tiny{LEFT * 5}", ["compare", "我的模型", "tiny"]),
    (f"info ti --json{LEFT * 7}", ["info", "tiny", "--json"]),
]


@pytest.mark.parametrize("name", SHELLS)
def test_shell_completes(name: str, start: Callable[..., Shell]) -> None:
    shell = start(name)
    found = {}
    for typed, _ in TYPED:
        found[typed] = words(shell, shell.complete(f"apt_model {typed}"))
    assert found == dict(TYPED)
    assert not list(shell.directory.rglob("pwned"))


@pytest.mark.parametrize("name", SHELLS)
def test_shell_finds_the_installed_script_and_lists(name: str, start: Callable[..., Shell]) -> None:
    shell = start(name, "--install")
    assert shell.complete("apt-model info ti") == "apt-model info tiny "
    assert "recipe.yaml" in shell.complete("apt-model info tiny > my")  # where output goes is the shell's affair
    again = "\t" if shell.name == "bash" else ""  # bash lists at the second press
    assert shell.complete(f"apt_model plugin {again}") == "apt_model plugin "
    shell.complete(f"apt_model prune --strategy {again}")
    shown = shell.seen.decode(errors="replace")
    assert "enable" in shown and "structured" in shown
    if shell.name != "bash":  # bash shows no descriptions
        assert "Make disabled plugins usable again." in shown
        assert "`touch pwned` $(touch pwned) %F{red}[31m; touch pwned" in shown
    assert not list(shell.directory.rglob("pwned"))
