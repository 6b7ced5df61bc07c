"""Verdicts hold for the files that were tried, in the environment in which they were."""

import dataclasses
import json
import os
import random
import zlib
from pathlib import Path

import pytest

from apt.plugins import declare, verdicts
from apt.plugins.base import Plugin
from apt.plugins.verdicts import Seal, Verdict


class Empty(Plugin):
    name = "x"


DECLARED = declare.describe(Empty)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "package"
    (path / "inner").mkdir(parents=True)
    (path / "__init__.py").write_text("a")
    (path / "inner" / "b.py").write_text("b")
    (path / "plugin.toml").write_text("")
    return path


def test_kept_verdict_is_found_again(package: Path) -> None:
    verdict = Verdict(Seal.of(package), "", DECLARED, 0.25, 1000)
    assert verdicts.find(str(package)) is None
    verdicts.keep(verdict)
    assert verdicts.find(str(package)) == verdict
    verdicts.forget(str(package))
    assert verdicts.find(str(package)) is None
    verdicts.forget(str(package))


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "touch", "manifest"])
def test_seal_breaks_with_any_change_of_code(package: Path, change: str) -> None:
    before = Seal.of(package)
    inner = package / "inner" / "b.py"
    match change:
        case "edit":
            inner.write_text("c")
            os.utime(inner, ns=(before.mtime_ns, before.mtime_ns))  # same size, same time
        case "add":
            (package / "inner" / "c.py").write_text("")
        case "remove":
            inner.unlink()
        case "rename":
            inner.rename(package / "inner" / "d.py")
        case "touch":
            os.utime(inner, (before.mtime_ns // 10**9 + 9,) * 2)
        case "manifest":
            (package / "plugin.toml").write_text("#")
    assert Seal.of(package) != before


def test_what_is_no_code_breaks_no_seal(package: Path) -> None:
    before = Seal.of(package)
    (package / "data.json").write_text("{}")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "b.py").write_text("")
    (package / ".hidden.py").write_text("")
    assert Seal.of(package) == before


def test_other_environment_has_its_own_verdict(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts.keep(Verdict(Seal.of(package), "bad"))
    monkeypatch.setattr("sys.prefix", "/elsewhere")
    assert verdicts.find(str(package)) is None


def test_damage_is_a_miss(package: Path) -> None:
    verdict = Verdict(Seal.of(package), "", {"name": "x"}, 0.25, 1000)
    verdicts.keep(verdict)
    (path,) = Path(verdicts.directory()).iterdir()
    whole, chance = path.read_bytes(), random.Random(3)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])]))
        assert verdicts.find(str(package)) in (None, verdict)
    path.write_bytes(b"")
    assert verdicts.find(str(package)) is None


def test_cache_that_cannot_be_written_is_done_without(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verdicts.keep(Verdict(Seal.of(package)))
    assert verdicts.find(str(package)) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("APT_NO_CACHE", "1")
    verdicts.keep(Verdict(Seal.of(package)))
    assert not Path(verdicts.directory()).exists()


ROW = {"name": "x", "target": "", "help": ""}


@pytest.mark.parametrize(
    "declared",
    [
        {},
        {**DECLARED, "more": 1},
        {k: v for k, v in DECLARED.items() if k != "hooks"},
        {**DECLARED, "name": 3},
        {**DECLARED, "api": "1"},
        {**DECLARED, "requires": "x"},
        {**DECLARED, "hooks": [1]},
        {**DECLARED, "commands": 3},
        {**DECLARED, "commands": [{}]},
        {**DECLARED, "commands": [[*ROW]]},
        {**DECLARED, "commands": [{**ROW, "help": None}]},
        {**DECLARED, "components": [{"kind": "loss"}]},
    ],
)
def test_what_no_plugin_can_declare_is_no_verdict(package: Path, declared: dict) -> None:
    verdicts.keep(Verdict(Seal.of(package), "", declared, 0.25, 1000))
    assert verdicts.find(str(package)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"declared": [1], "reason": "bad"},
        {"declared": [1]},
        {"reason": 5},
        {"target": None},
        {"import_seconds": "1"},
        {"import_seconds": float("nan")},
        {"import_seconds": -1.0},
        {"import_bytes": 1.5},
        {"import_bytes": 1 << 70},
        {"seal": {"size_bytes": "1"}},
        {"seal": {"sha256": [1]}},
    ],
    ids=str,
)
def test_forged_fields_are_no_verdict(package: Path, changes: dict) -> None:
    verdict = Verdict(Seal.of(package), "", DECLARED, 0.25, 1000)
    verdicts.keep(verdict)
    (path,) = Path(verdicts.directory()).iterdir()
    data = dataclasses.asdict(verdict)
    text = json.dumps({**data, **changes, "seal": {**data["seal"], **changes.get("seal", {})}}).encode()
    path.write_bytes(f"{zlib.crc32(text):08x}\n".encode() + text)
    assert verdicts.find(str(package)) is None


def test_verdicts_of_long_ago_are_swept(package: Path) -> None:
    verdicts.keep(Verdict(Seal.of(package)))
    (old,) = Path(verdicts.directory()).iterdir()
    os.utime(old, (1, 1))
    verdicts.keep(Verdict(Seal.of(package / "plugin.toml")))
    assert not old.exists()
