"""Ten hostile plugins at once: they cost their user nothing but themselves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.plugins import trial

TEMPLATE = """\
from apt.plugins.base import Plugin
{top}
class Made(Plugin):
    name = {name!r}
    version = "1"
    description = "d"
    api = {api}
    def register_commands(self, registry):
        registry.add_command({command!r}, self.run)
    def run(self, args):
        print("ran", {name!r})
    {hook}
"""

HEALTHY = TEMPLATE.format(top="", name="healthy", api=1, command="healthy-command", hook="")

#: file → top of the module, and what of the plugin is not as it should be.
HOSTILE = {
    "aa_raises.py": {"top": "raise RuntimeError('no')"},
    "aa_exits.py": {"top": "import sys; sys.exit(3)"},
    "aa_dies.py": {"top": "import os; os._exit(0)"},
    "aa_segfaults.py": {"top": "import ctypes; ctypes.string_at(0)"},
    "aa_loops.py": {"top": "while True:\n    try:\n        while True: pass\n    except BaseException: pass"},
    "aa_prints.py": {"top": "import os, sys; print('{'); os.write(1, b'x' * 9999); sys.stderr.write('y' * 9999)"},
    "aa_new.py": {"api": 99},
    "aa_shadows.py": {"command": "info"},
    "aa_impostor.py": {"name": "healthy", "command": "healthy-command"},
    "aa_open.py": {},
}

COMMANDS = [
    ["info", "tiny"],
    ["info", "tiny", "--json"],
    ["size", "tiny"],
    ["list", "--json"],
    ["run", "quickstart", "--dry-run", "--json"],
    ["plugin", "info", "ollama", "--json"],
    ["prune", "tiny", "-o", "no-such-place", "--dry-run", "--json"],
    ["info", "no-such-model"],
    ["healthy-command"],
    ["--version"],
]


@pytest.fixture
def plugins(apt_home: Path) -> Path:
    directory = apt_home / "plugins"
    directory.mkdir(parents=True)
    (directory / "healthy.py").write_text(HEALTHY)
    return directory


def add_hostile(directory: Path, hook: str = "") -> None:
    for file, wrong in HOSTILE.items():
        name = file.removesuffix(".py").replace("_", "-")
        facts = {"top": "", "name": name, "api": 1, "command": f"{name}-command", "hook": hook, **wrong}
        (directory / file).write_text(TEMPLATE.format(**facts))
    (directory / "aa_open.py").chmod(0o666)


def test_every_command_prints_what_it_prints_without_them(cli: Callable, plugins: Path) -> None:
    before = [cli(*words) for words in COMMANDS]
    assert [ran.code for ran in before] == [0, 0, 0, 0, 0, 0, 0, 3, 0, 0]
    listed = json.loads(cli("plugin", "list", "--json").out)["plugins"]
    help_text = cli("--help").out
    add_hostile(plugins)
    assert [cli(*words) for words in COMMANDS] == before
    after = json.loads(cli("plugin", "list", "--json").out)["plugins"]
    assert [p for p in after if not p["folder"].startswith("aa_")] == listed
    assert len(after) == len(listed) + len(HOSTILE)
    # Their own lines are in the help too, and may move a column; nobody else's word is missing.
    assert set(help_text.split()) <= set(cli("--help").out.split())


def test_each_of_them_says_what_is_wrong_when_it_is_used(
    cli: Callable, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 2.0)
    add_hostile(plugins)
    told = {
        "raises": "is in quarantine: RuntimeError: no",
        "exits": "is in quarantine: SystemExit: 3",
        "dies": "is in quarantine: importing it ended the process with code 0",
        "segfaults": "is in quarantine: importing it ended the process with code -11",
        "loops": "is in quarantine: importing it took longer than 2 s",
        "new": "cannot be loaded: needs plugin interface 99; this apt_model has 1",
        "open": "can be written by others (mode 0666)",
    }
    for name, reason in told.items():
        ran = cli(f"aa-{name}-command")
        assert (ran.code, ran.out) == (1, ""), name
        assert ran.err.startswith(f"error: plugin aa-{name} ") and reason in ran.err
        assert ran.err.count("\n") == 1
    assert cli("aa-prints-command") == (0, "ran aa-prints\n", "")
    listed = {p["folder"]: p for p in json.loads(cli("plugin", "list", "--json").out)["plugins"]}
    assert listed["aa_shadows"]["reason"] == "its command 'info' belongs to apt_model itself"
    assert listed["aa_impostor"]["name"] == "healthy@aa_impostor"
    assert {f for f, p in listed.items() if p["status"] == "quarantined"} == {
        "aa_raises", "aa_exits", "aa_dies", "aa_segfaults", "aa_loops",
    }  # fmt: skip
    text = cli("plugin", "list").out
    assert "importing it took longer than 2 s" in text
    for file in HOSTILE:
        assert cli("plugin", "disable", listed[file.removesuffix(".py")]["name"]).code == 0


def test_hooks_of_hostile_plugins_are_told_once_and_change_no_output(
    cli: Callable, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 2.0)
    before = [cli(*words) for words in COMMANDS]
    add_hostile(plugins, hook="def before_operation(self): raise SystemExit(5)")
    first = cli(*COMMANDS[0])
    assert (first.code, first.out) == (0, before[0].out)
    warnings = first.err.splitlines()
    assert len(warnings) == 6  # five quarantined, and the hook of the one that can be imported
    assert all(line.startswith("warning: ") for line in warnings)
    for words, expected in zip(COMMANDS, before, strict=True):
        ran = cli(*words)
        assert (ran.code, ran.out) == (expected.code, expected.out)
        told = [line for line in ran.err.splitlines() if line not in expected.err.splitlines()]
        assert all("hook before_operation of plugin aa-prints failed: SystemExit: 5" in line for line in told)


@pytest.mark.parametrize("error", ["GeneratorExit()", "Odd('x')", "Mute()"])
@pytest.mark.parametrize("method", ["before_operation", "after_operation", "setup", "teardown", "run"])
def test_whatever_a_plugin_raises_leaves_one_document(method: str, error: str, cli: Callable, plugins: Path) -> None:
    top = "class Odd(BaseException): ...\nclass Mute(Exception):\n    def __str__(self): return 1 / 0"
    hook = f"def {method}(self, *args): raise {error}\n    def information(self): return []"
    (plugins / "odd.py").write_text(TEMPLATE.format(top=top, name="odd", api=1, command="odd", hook=hook))
    healthy = cli("info", "tiny", "--json")
    assert (healthy.code, json.loads(healthy.out)["architecture"] != "") == (0, True)
    own = cli("odd", "--json")
    if method in ("setup", "run"):
        assert own.code == 1
        assert error.partition("(")[0] in json.loads(own.out)["error"]["message"]
    assert "Traceback" not in healthy.err + own.err


def test_safe_mode_runs_nothing_of_others(cli: Callable, plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APT_SAFE_MODE", "")  # --safe-mode sets it for the whole process
    add_hostile(plugins, hook="def before_operation(self): 1 / 0")
    monkeypatch.setattr(trial, "attempt", None)
    assert cli("--safe-mode", "info", "tiny").code == 0
    ran = cli("--safe-mode", "healthy-command")
    assert ran.code == 2
    assert "plugin healthy is left out in safe mode (mend it with: the same command without --safe-mode" in ran.err


def test_traced_hooks_are_accounted(cli: Callable, plugins: Path) -> None:
    assert "no hook of a plugin was called" in cli("--trace-hooks", "plugin", "info", "ollama").err
    hook = "def before_operation(self, operation): assert operation != 'size'"
    text = TEMPLATE.format(top="", name="traced", api=1, command="traced", hook=hook)
    (plugins / "traced.py").write_text(text)
    ran = cli("--trace-hooks", "info", "tiny", "--json")
    assert json.loads(ran.out)["architecture"]
    rows = [line.split() for line in ran.err.splitlines()]
    (row,) = (r for r in rows if "before_operation" in r)
    assert (row[:4], float(row[4]) >= 0) == (["traced", "before_operation", "1", "0"], True)
    (cost,) = (r for r in rows if r[0] == "traced" and len(r) == 2)
    assert float(cost[1]) > 0
    assert "hook before_operation of plugin traced failed" in cli("--trace-hooks", "size", "tiny").err


def test_information_of_plugins_is_among_the_facts(cli: Callable, plugins: Path) -> None:
    hook = "def information(self, model): return {'授权': model.name, 3: 4}"
    (plugins / "knows.py").write_text(TEMPLATE.format(top="", name="knows", api=1, command="knows", hook=hook))
    (plugins / "lies.py").write_text(
        TEMPLATE.format(top="", name="lies", api=1, command="lies", hook="def information(self, model): return 'no'")
    )
    ran = cli("info", "tiny", "--json")
    assert json.loads(ran.out)["from_plugins"] == {"授权": "tiny", "3": "4"}
    assert "授权" in cli("info", "tiny").out
