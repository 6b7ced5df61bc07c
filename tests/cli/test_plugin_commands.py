"""The commands that manage plugins: exit codes, JSON, and that none of them imports what it manages."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import ExitCode

SOURCE = """
from pathlib import Path
with Path({trace!r}).open("a") as file:
    file.write("imported ")
from apt.plugins.base import Plugin
class Made(Plugin):
    name = {name!r}
    description = "问候 says hello"
    def register_commands(self, registry):
        registry.add_command({name!r}, self.run)
    def run(self, args): ...
    def before_operation(self, operation): ...
    def after_operation(self, operation): ...
    def diagnostics(self): return []
    def information(self): return []
"""


@pytest.fixture
def made(apt_home: Path, tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        path = apt_home / "plugins" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE.format(name=name, trace=str(tmp_path / "trace")), encoding="utf-8")
        return path

    return write


def test_managing_imports_nothing_in_any_process(cli: Callable, made: Callable, tmp_path: Path) -> None:
    path, trace = made("greet"), tmp_path / "trace"
    made("new")
    assert cli("plugin", "try", "greet").code == ExitCode.OK
    assert trace.read_text() == "imported "
    trace.unlink()
    for words in (
        "list", "list --json", "info greet", "info new", "doctor", "doctor new", "search", "search hello",
        f"lock -o {tmp_path / 'set.json'}", "disable greet", "enable greet new", f"sync {tmp_path / 'set.json'}",
        "uninstall new --dry-run", "uninstall greet",
    ):  # fmt: skip
        ran = cli("plugin", *shlex.split(words))
        assert (ran.code, ran.err) == (0, ""), words
        assert not trace.exists(), words
    assert not path.exists()


def test_try_tells_verdict_and_cost(cli: Callable, made: Callable) -> None:
    path = made("greet")
    ran = cli("plugin", "try", "greet", "cloud-storage")
    assert ran.code == ExitCode.OK
    assert " ms " in ran.out and "passed" in ran.out and "it is part of apt_model" in ran.out
    path.write_text(path.read_text(encoding="utf-8") + "while True:\n    pass\n", encoding="utf-8")
    ran = cli("plugin", "try", "greet", "--seconds", "0.5", "--json")
    assert ran.code == ExitCode.CHECK_FAILED
    (trial,) = json.loads(ran.out)["trials"]
    assert trial["reason"] == "importing it took longer than 0.5 s; plugin try --seconds gives it more"
    assert "apt_model plugin uninstall greet" in trial["mend"]
    assert cli("plugin", "try", "greet", "--seconds", "0").code == ExitCode.USAGE
    assert cli("plugin", "try", "nonsense").code == ExitCode.NOT_FOUND


def test_uninstall_says_how_to_put_it_back(cli: Callable, made: Callable, apt_home: Path) -> None:
    path = made("greet")
    (removed,) = json.loads(cli("plugin", "uninstall", "greet", "--json").out)["removed"]
    assert Path(removed["kept_in"]).parents[1] == apt_home / "removed-plugins"
    assert removed["restore"] == f"mv {removed['kept_in']} {path}"
    ran = cli("plugin", "uninstall", "ollama")
    assert (ran.code, "apt_model plugin disable ollama-export" in ran.err) == (ExitCode.USAGE, True)
    assert cli("plugin", "uninstall", "greet").code == ExitCode.NOT_FOUND


def test_doctor_ends_with_the_verdict(cli: Callable, made: Callable) -> None:
    assert cli("plugin", "doctor").code == ExitCode.OK
    made("greet").chmod(0o666)
    ran = cli("plugin", "doctor", "--json")
    assert ran.code == ExitCode.CHECK_FAILED
    found = json.loads(ran.out)
    assert {f["code"] for f in found["findings"] if f["severity"] == "error"} == {"broken", "ownership"}
    assert cli("plugin", "doctor", "nonsense").code == ExitCode.NOT_FOUND


def test_search_speaks_chinese_and_tells_of_network_faults(cli: Callable, made: Callable, tmp_path: Path) -> None:
    made("greet")
    index = tmp_path / "index.json"
    index.write_text(
        '{"plugins": [{"name": "zh", "description": "剪枝", "requirement": "zh-plugin"}]}', encoding="utf-8"
    )
    assert [p["name"] for p in json.loads(cli("plugin", "search", "问候", "--json").out)["plugins"]] == ["greet"]
    ran = cli("plugin", "search", "剪枝", "--index", index)
    assert f"apt_model plugin install zh --index {index}" in ran.out
    assert cli("plugin", "search", "--index", "http://127.0.0.1:9/index.json").code == ExitCode.NETWORK
    assert cli("plugin", "search", "--index", tmp_path / "none.json").code == ExitCode.NOT_FOUND
    index.write_text("[]")
    assert cli("plugin", "search", "--index", index).code == ExitCode.BAD_INPUT


def test_lock_and_sync_of_a_file(
    cli: Callable, made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = made("greet"), tmp_path / "set.json"
    assert cli("plugin", "lock", "-o", lock).code == ExitCode.OK
    assert cli("plugin", "lock", "-o", lock).code == ExitCode.TARGET_EXISTS
    assert cli("plugin", "lock", "-o", lock, "--overwrite").code == ExitCode.OK
    text = path.read_text(encoding="utf-8")
    path.unlink()
    made("other")
    would = json.loads(cli("plugin", "sync", lock, "--exact", "--dry-run", "--json").out)
    assert (would["installed"], would["removed"], path.exists()) == (["greet.py"], ["other"], False)
    assert cli("plugin", "sync", lock, "--exact").code == ExitCode.OK
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["greet.py"]
    monkeypatch.setattr("apt.plugins.syncing._write", lambda _dropin: "")
    path.unlink()
    ran = cli("plugin", "sync", lock)
    assert (ran.code, "greet.py is not what was locked" in ran.out) == (ExitCode.CHECK_FAILED, True)
    lock.write_text("{}")
    assert cli("plugin", "sync", lock).code == ExitCode.BAD_INPUT
