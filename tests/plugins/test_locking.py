"""Locking: the index is named only for what it really has, and a lock is written whole or not at all."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import BadInputError, TargetExistsError
from apt.plugins import build, lockfile, locking, packages

Make = Callable[..., Any]


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "published", lambda _pins: {})


@pytest.mark.usefixtures("no_index")
def test_lock_is_written_beside_its_wheels(
    make_wheel: Make, put: Make, dropin: Make, plugin_source: Make, tmp_path: Path
) -> None:
    put(make_wheel("greet", requires=("made-helper", "not-installed", "torch", "extra-only; extra == 'x'")))
    put(make_wheel("made-helper", plugin=None))
    put(make_wheel("bystander", plugin=None))
    dropin("here.py", plugin_source("here", top="raise SystemExit('imported')"))
    file = tmp_path / "out" / "set.json"
    result = locking.lock(file)
    assert result.packed == ("greet==1.0", "made-helper==1.0")
    document = json.loads(file.read_text())
    wheels = {p["wheel"]: p["sha256"] for p in document["packages"]}
    assert {n: hashlib.sha256((Path(result.wheels) / n).read_bytes()).hexdigest() for n in wheels} == wheels
    assert set(document["environment"]) == {"python", "apt_model", "torch", "transformers", "numpy"}
    assert "+" not in document["environment"]["torch"]
    with pytest.raises(TargetExistsError):
        locking.lock(file)
    text = file.read_text()
    locking.lock(file, overwrite=True)
    assert file.read_text() == text


@pytest.mark.usefixtures("no_index")
def test_dropins_of_others_and_large_ones_are_refused(
    dropin: Make, plugin_source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dropin("here.py", plugin_source("here"))
    path.chmod(0o666)
    with pytest.raises(BadInputError, match=r"plugin here is not locked: .* can be written by others"):
        locking.lock(tmp_path / "set.json")
    path.chmod(0o644)
    monkeypatch.setattr(locking, "LARGEST_DROPIN", 10)
    with pytest.raises(BadInputError, match="too large to be locked"):
        locking.lock(tmp_path / "set.json")
    assert not list(tmp_path.glob("*set.json*"))


def test_full_disk_leaves_nothing(environment: Make, make_wheel: Make, tmp_path: Path) -> None:
    here = environment()
    here.json("plugin", "install", make_wheel("greet", files={"greet/data.bin": b"x" * 200_000}))
    here.command = ["prlimit", "--fsize=100000", "--"]
    ran = here.run("plugin", "lock", "-o", tmp_path / "set.json", APT_NO_CACHE="1")
    assert (ran.returncode, ran.stderr.count("\n")) == (8, 1), ran.stderr
    assert ran.stderr.startswith("error: cannot write")
    assert not list(tmp_path.glob("*set.json*"))


def test_index_is_named_for_what_it_has_and_nothing_else(
    environment: Make, make_wheel: Make, simple_index: Any, tmp_path: Path
) -> None:
    here = environment(index=simple_index.url)
    other = make_wheel("same-name", files={"same_name/other.py": "import os\n"}, directory=tmp_path / "stranger")
    served = make_wheel("on-index", requires=("made-helper",)), make_wheel("made-helper", plugin=None)
    for wheel in (*served, other):
        simple_index.wheels[wheel.name] = wheel.read_bytes()
    mine = make_wheel("same-name")
    here.json("plugin", "install", "on-index>=1")
    here.json("plugin", "install", mine)
    (here.site / "same_name-1.0.dist-info" / "direct_url.json").unlink()  # nobody knows where it came from
    done = here.json("plugin", "lock", "-o", tmp_path / "set.json")
    assert (done["indexed"], done["packed"]) == (["made-helper==1.0", "on-index==1.0"], ["same-name==1.0"])
    there = environment("there", index=simple_index.url)
    synced = there.json("plugin", "sync", tmp_path / "set.json")
    assert synced["installed"] == ["made-helper==1.0", "on-index==1.0", "same-name==1.0"]
    assert not (there.site / "same_name" / "other.py").exists()
    there.json("plugin", "lock", "-o", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "set.json").read_text()
    simple_index.corrupt.add(served[1].name)
    third = environment("third", index=simple_index.url)
    assert "hash" in third.json("plugin", "sync", tmp_path / "set.json", code=1)["error"]["message"].lower()
    assert third.plugins() == {}


@pytest.mark.usefixtures("no_index")
def test_modules_beside_dropins_are_locked_and_bytecode_is_not(
    dropin: Make, plugin_source: Make, tmp_path: Path
) -> None:
    dropin("_none/data.txt", "")
    assert locking.lock(tmp_path / "empty.json").dropins == ()
    dropin("here/__init__.py", plugin_source("here", top="from .._helper import X"))
    for name in ("here/deep.pyc", "here/__pycache__/a.pyc", "__pycache__/a.pyc", "_notes.txt"):
        dropin(name, "")
    dropin("_helper.py", "X = 1\n")
    dropin("_parts/one.py", "Y = 2\n")
    build.set_disabled(["here", "model-pruning"])
    result = locking.lock(tmp_path / "set.json")
    held = lockfile.read(tmp_path / "set.json")
    files = {f.path for d in held.dropins for f in d.files}
    assert files == {"here/__init__.py", "_helper.py", "_parts/one.py", "_none/data.txt"}
    assert (held.disabled, result.disabled) == (("here",), ("here",))  # what is ours is each environment's own


@pytest.mark.usefixtures("no_index")
def test_places_that_no_lock_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for place in ("/", ".", ".."):
        for overwrite in (False, True):
            with pytest.raises(TargetExistsError):
                locking.lock(Path(place), overwrite=overwrite)
    assert list(here.iterdir()) == []
