"""The frame of the command line: errors become one line and an exit code, whatever raises them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.cli import lazy, main
from apt.console.errors import ExitCode
from apt.plugins.core import CORE_COMMANDS

PLUGIN = """
from apt.plugins.base import Plugin
class Made(Plugin):
    name = "made"
    def register_commands(self, registry):
        registry.add_command("do", self.do)
    def do(self, args):
        '''Do things.'''
        {body}
"""


@pytest.fixture
def do(apt_home: Path) -> Callable[[str], None]:
    """Install a plugin whose command ``do`` runs the given statement."""

    def write(body: str) -> None:
        path = apt_home / "plugins" / "made.py"
        path.parent.mkdir(parents=True)
        path.write_text(PLUGIN.format(body=body), encoding="utf-8")

    return write


def test_help_lists_every_command(cli: Callable) -> None:
    for words in (["--help"], ["-h"]):
        ran = cli(*words)
        assert (ran.code, ran.err) == (0, "")
        for command in CORE_COMMANDS:
            assert re.search(rf"^  {command.name} +\S", ran.out, re.MULTILINE)
    assert cli().code == ExitCode.USAGE


def test_version(cli: Callable) -> None:
    assert re.fullmatch(r"apt_model \d+\.\d+\.\d+\n", cli("--version").out)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["inof"], 3, "no command is called 'inof' (did you mean 'info'?)"),
        (["xyzzy"], 3, "no command is called 'xyzzy' (apt_model --help lists the commands)"),
        (["--nonsense"], 2, "No such option"),
        (["plugin", "lst"], 2, "No such command 'lst'. Did you mean 'list'? (apt_model plugin --help"),
        (["plugin", "list", "--nonsense"], 2, "No such option"),
        (["plugin", "info"], 2, "Missing argument 'NAME'"),
        (["plugin", "info", "a", "b"], 2, "unexpected extra argument"),
        (["plugin", "info", "nonsense"], 3, "no plugin is called 'nonsense'"),
        (["train-multimodal"], 3, "belongs to the plugin multimodal-training"),
    ],
)
def test_wrong_calls_are_one_line(words: list[str], code: int, text: str, cli: Callable) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert text in ran.err
    assert ran.err.count("\n") == 1


def test_error_with_json_is_an_object_on_stdout(cli: Callable) -> None:
    ran = cli("plugin", "info", "nonsense", "--json")
    assert json.loads(ran.out)["error"]["exit_code"] == ran.code == ExitCode.NOT_FOUND
    assert json.loads(cli("plugin", "info", "--json").out)["error"]["exit_code"] == ExitCode.USAGE


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("return 7", 7, ""),
        ("return True", 0, ""),
        ("raise SystemExit(5)", 5, ""),
        ("raise KeyboardInterrupt", 130, "error: interrupted\n"),
        ("raise BrokenPipeError", None, ""),
        ("import no_such_library", 6, "error: the Python package 'no_such_library' is not installed (pip install"),
        ("open('/no/such/file')", 3, "error: no such file or directory: /no/such/file\n"),
        ("from apt.console.errors import NetworkError; raise NetworkError('off', hint='on')", 9, "error: off (on)\n"),
    ],
)
def test_what_a_command_raises(
    body: str, code: int | None, text: str, do: Callable, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if code is None:
        code = main.BROKEN_PIPE
        monkeypatch.setattr(main, "_reader_gone", lambda: main.BROKEN_PIPE)
    do(body)
    ran = cli("do")
    assert ran.code == code
    assert ran.err.startswith(text)


def test_fault_of_ours_keeps_its_traceback_in_a_file(
    do: Callable, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    do("return 1 / 0")
    ran = cli("do")
    assert ran.code == ExitCode.FAILED
    assert ran.err.startswith("error: unexpected ZeroDivisionError: division by zero (traceback in ")
    assert "Traceback" not in ran.err
    log = Path(re.search(r"traceback in (\S+);", ran.err)[1])
    assert "ZeroDivisionError" in log.read_text(encoding="utf-8")
    log.unlink()
    monkeypatch.setenv("APT_DEBUG", "1")
    ran = cli("do")
    assert "Traceback" in ran.err
    Path(re.search(r"traceback in (\S+);", ran.err)[1]).unlink()


def test_options_of_a_callable_are_a_namespace(do: Callable, cli: Callable) -> None:
    do("print(args.model, args.keep_all, args.n, args.positional)")
    ran = cli("do", "x", "--model=m", "--n", "-3", "--n", "4", "y", "--keep-all")
    assert (ran.out, ran.err) == ("m True ['-3', '4'] ['x', 'y']\n", "")
    assert "Do things." in cli("do", "--help").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"positional": []}),
        (["--a", "--b", "1"], {"a": True, "b": "1", "positional": []}),
        (["-v", "--", "--a", "-"], {"v": True, "positional": ["--a", "-"]}),
        (["--a", "1", "--a", "2", "--a=3"], {"a": ["1", "2", "3"], "positional": []}),
        (["--a="], {"a": "", "positional": []}),
    ],
)
def test_namespace(words: list[str], expected: dict) -> None:
    assert vars(lazy.parse_namespace(words)) == expected


def test_hooks_are_told_of_a_command(apt_home: Path, cli: Callable) -> None:
    path = apt_home / "plugins" / "watch.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from apt.plugins.base import Plugin\n"
        "class Watch(Plugin):\n"
        "    name = 'watch'\n"
        "    def before_operation(self, operation, options): print('before', operation, options['model'])\n"
        "    def after_operation(self, operation, seconds, error): print('after', operation, seconds >= 0, error)\n"
    )
    told = cli("info", "nonsense").err
    assert told.startswith("before info nonsense\nafter info True no model")
    assert "before" not in cli("plugin", "disable", "nonsense").err  # managing plugins needs none of them


def test_typer_program_as_a_target_keeps_its_subcommands(
    apt_home: Path, cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_commands.py").write_text(
        "import typer\napp = typer.Typer()\n@app.command()\ndef only(n: int):\n    '''Only one.'''\n    print(n + 1)\n"
        "def single(n: int = 3):\n    '''Single.'''\n    print(n)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = apt_home / "plugins" / "theirs.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from apt.plugins.base import Plugin\nclass Theirs(Plugin):\n    name = 'theirs'\n"
        "    def register_commands(self, r):\n"
        "        r.add_command('group', 'their_commands:app')\n"
        "        r.add_command('single', 'their_commands:single')\n"
    )
    assert cli("group", "only", "4").out == "5\n"
    assert cli("single", "--n", "9").out == "9\n"
    assert cli("single", "--n", "x").code == ExitCode.USAGE
    assert "Only one." in cli("group", "--help").out


@pytest.mark.parametrize(
    ("words", "streams", "code"),
    [
        ("info tiny --json", ">/dev/full", ExitCode.CANNOT_WRITE),
        ("info nope --json", ">/dev/full", ExitCode.NOT_FOUND),
        ("info nope --json", "2>/dev/full", ExitCode.NOT_FOUND),
        ("info nope --json", ">&- 2>&-", ExitCode.NOT_FOUND),
        ("info tiny", ">&-", ExitCode.OK),
        ("--help", ">&-", ExitCode.OK),
        ("plugin list", ">&-", ExitCode.OK),
    ],
)
def test_streams_that_take_nothing(apt_home: Path, words: str, streams: str, code: ExitCode) -> None:
    command = f"exec {sys.executable} -m apt_model {words} {streams}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
