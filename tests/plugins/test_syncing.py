"""A set that was locked is the same set in another environment; hostile locks and interruptions change nothing."""

import hashlib
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import AptError, BadInputError
from apt.plugins import syncing

Make = Callable[..., Any]


@pytest.fixture
def locked(locked_set: Path, tmp_path: Path) -> Path:
    """A copy of the lock file that ``locked_set`` holds, with its wheels."""
    shutil.copytree(locked_set, tmp_path / "locked")
    return tmp_path / "locked" / "set.json"


NAMES = {"greet", "hello", "big"}


def test_set_is_restored_in_a_fresh_environment(locked: Path, environment: Make, plugin_source: Make) -> None:
    there = environment("there")
    kept = there.drop("hello.py", plugin_source("hello", top="# mine"))
    there.drop("other.py", plugin_source("other"))
    mine = kept.read_text()
    would = there.json("plugin", "sync", locked, "--dry-run")
    assert set(there.plugins()) == {"hello", "other"}
    done = there.json("plugin", "sync", locked)
    assert would["installed"] == done["installed"] == ["greet-plugin==1.0", "made-helper==1.0", "big", "hello.py"]
    assert (done["differences"], done["extra"], done["removed"]) == ([], ["other"], [])
    (replaced,) = done["kept"]
    assert Path(replaced).read_text() == mine  # what a user wrote is never lost
    plugins = there.plugins()
    assert set(plugins) == {*NAMES, "other"}
    assert plugins["hello"]["status"] == "disabled"
    assert there.run("greet-command").stdout.startswith("hello from greet")
    again = there.json("plugin", "sync", locked, "--exact")
    assert (again["installed"], again["removed"]) == ([], ["other"])
    assert set(there.plugins()) == NAMES
    there.json("plugin", "lock", "-o", "again.json")
    assert (there.directory / "again.json").read_bytes() == locked.read_bytes()
    wheels = {p.name: p.read_bytes() for p in locked.with_name("set.json.wheels").iterdir()}
    assert {p.name: p.read_bytes() for p in (there.directory / "again.json.wheels").iterdir()} == wheels


def test_changed_files_and_other_versions_are_put_right(locked: Path, environment: Make, make_wheel: Make) -> None:
    there = environment("there")
    there.json("plugin", "sync", locked)
    (there.site / "greet_plugin" / "__init__.py").write_text("")
    (there.home / "plugins" / "big" / "part.py").unlink()
    done = there.json("plugin", "sync", locked)
    assert (done["installed"], done["differences"]) == (["greet-plugin==1.0", "big"], [])
    there.json("plugin", "install", make_wheel("greet-plugin", "2.0", plugin="greet"))
    assert there.json("plugin", "sync", locked)["installed"] == ["greet-plugin==1.0"]


def change(locked: Path, edit: Callable[[dict], None]) -> Path:
    document = json.loads(locked.read_text())
    edit(document)
    locked.write_text(json.dumps(document))
    return locked


@pytest.mark.parametrize(
    ("edit", "code", "told"),
    [
        (lambda d: d["environment"].update(torch="==1.0"), 6, "torch==1.0 (here 2."),
        (lambda d: d["environment"].update(python="<3"), 6, "another environment: it needs python<3 (here 3."),
        (lambda d: d["packages"][0].update(sha256="0" * 64), 4, "not the wheel that was locked: its sha256 differs"),
        (lambda d: d["packages"][0].update(name="torch"), 4, "belongs to apt_model's own installation"),
        (
            lambda d: d["packages"][0].update(wheel="gone-1.0-py3-none-any.whl", name="gone"),
            3,
            "the wheel of gone==1.0 is not there",
        ),
        (lambda d: d["dropins"][0]["files"][0].update(path="../evil.py"), 4, "does not lie in big"),
        (
            lambda d: d["dropins"][0].update(plugins=["model-pruning"]) or d.update(disabled=["model-pruning"]),
            4,
            "the plugin model-pruning is part of apt_model, and no lock holds it",
        ),
        (lambda d: d.update(run="rm"), 4, "has the unknown field 'run'"),
    ],
)
def test_locks_that_do_not_hold_change_nothing(
    edit: Callable[[dict], None], code: int, told: str, locked: Path, monkeypatch: pytest.MonkeyPatch, apt_home: Path
) -> None:
    monkeypatch.setattr("apt.plugins.packages.pip", None)
    with pytest.raises(AptError) as refused:
        syncing.sync(change(locked, edit))
    assert told in refused.value.message
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (code, False)
    assert not (apt_home / "plugins").exists()


def test_wheel_of_another_package_is_refused(locked: Path, make_wheel: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locked.with_name("set.json.wheels")
    wheel = Path(shutil.copy(make_wheel("stranger"), folder / "greet_plugin-1.0-py3-none-any.whl"))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr("apt.plugins.packages.pip", None)
    with pytest.raises(BadInputError, match=r"the wheel of greet-plugin==1\.0 is one of stranger 1\.0"):
        syncing.sync(change(locked, lambda d: d["packages"][0].update(sha256=sha256)))


#: Ends the process as a crash would: in the middle of pip, after pip, after the first drop-in, before the state.
KILLED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from apt.cli.main import main
from apt.plugins import build, packages, syncing

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

def half_of_pip(pins, directory, **_):
    requirements = packages._hashed(pins, directory / "r.txt")
    pip = subprocess.Popen([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links",
                            str(directory), "-r", str(requirements)], stdout=subprocess.DEVNULL)
    site = Path({site!r})
    while pip.poll() is None and not list(site.glob("*.dist-info")):
        time.sleep(0.0005)
    pip.kill()
    pip.wait()
    die()

def second(call, count=[]):
    def run(*a, **k):
        count.append(1)
        return die() if len(count) == 2 else call(*a, **k)
    return run

match {where!r}:
    case "pip": packages.install_exactly = half_of_pip
    case "dropins": syncing._write = die
    case "second": syncing._write = second(syncing._write)
    case "state": build.set_disabled = die
main(["plugin", "sync", {lock!r}])
"""


@pytest.mark.parametrize("where", ["pip", "dropins", "second", "state"])
def test_interrupted_run_is_run_again(where: str, locked: Path, environment: Make) -> None:
    there = environment("there")
    code = KILLED.format(site=str(there.site), where=where, lock=str(locked))
    killed = subprocess.run([there.python, "-c", code], env=there.variables, cwd=there.directory, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert there.json("plugin", "sync", locked)["differences"] == []
    assert set(there.plugins()) == NAMES
    assert not list((there.home / "plugins").glob(".*"))


def test_remains_without_a_list_of_files_are_installed_over(locked: Path, environment: Make) -> None:
    there = environment("there")
    there.json("plugin", "sync", locked)
    (there.site / "greet_plugin-1.0.dist-info" / "RECORD").unlink()  # pip writes it last
    assert there.json("plugin", "sync", locked)["installed"] == ["greet-plugin==1.0"]
    assert there.json("plugin", "sync", locked)["installed"] == []


def test_plugin_directory_that_cannot_be_written_is_told(locked: Path, environment: Make) -> None:
    there = environment("there")
    there.home.mkdir()
    (there.home / "plugins").write_text("a file")
    error = there.json("plugin", "sync", locked, code=8)["error"]
    assert "cannot write" in error["message"]
    (there.home / "plugins").unlink()
    assert there.json("plugin", "sync", locked)["differences"] == []


def test_modules_beside_dropins_come_along_and_ours_stay_as_they_are(
    environment: Make, plugin_source: Make, tmp_path: Path
) -> None:
    here, there = environment("here"), environment("there")
    here.drop("one.py", plugin_source("one", top="from ._helper import X"))
    here.drop("_helper.py", "X = 1\n")
    here.json("plugin", "lock", "-o", tmp_path / "set.json")
    there.json("plugin", "disable", "model-pruning")
    done = there.json("plugin", "sync", tmp_path / "set.json", "--exact")
    assert (done["installed"], done["differences"]) == (["_helper.py", "one.py"], [])
    assert there.json("plugin", "try", "one")["trials"][0]["verdict"] == "passed"
    again = there.json("plugin", "sync", tmp_path / "set.json", "--exact")
    assert (again["installed"], again["disabled"]) == ([], ["model-pruning"])
