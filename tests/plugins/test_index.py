"""The cached index: taken only when everything it was made from is unchanged, never trusted when damaged."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.plugins import build, host, index


def index_file(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "apt_model").glob("index-*")
    return found


def test_is_written_once_and_read_back(tmp_path: Path) -> None:
    assert index.ready_text("help") is None
    built = build.build()
    assert "quickstart" in (index.ready_text("help") or "")
    assert host.load() == built
    assert index_file(tmp_path).stat().st_mode & 0o111 == 0


@pytest.mark.parametrize("change", ["add", "edit", "remove", "touch", "rename", "chmod", "state"])
def test_any_change_of_the_plugin_directory_is_seen(
    change: str, dropin: Callable[[str, str], Path], plugin_source: Callable[..., str], apt_home: Path
) -> None:
    path = dropin("one.py", plugin_source("one"))
    build.build()
    assert index.ready_text("help") is not None
    match change:
        case "add":
            dropin("two.py", plugin_source("two"))
        case "edit":
            path.write_text(plugin_source("eno"), encoding="utf-8")
        case "remove":
            path.unlink()
        case "touch":
            os.utime(path, (1, 1))
        case "rename":
            path.rename(path.with_name("other.py"))
        case "chmod":
            path.chmod(0o600)
        case "state":
            (apt_home / "plugins.json").write_text('{"disabled": ["one"]}', encoding="utf-8")
    assert index.ready_text("help") is None


def test_changed_search_path_home_or_version_makes_it_another_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build.build()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert index.ready_text("help") is None


def test_bytecode_written_by_python_is_no_change(dropin: Callable[[str, str], Path], apt_home: Path) -> None:
    dropin("one.py", "x = 1\n")
    build.build()
    (apt_home / "plugins" / "__pycache__").mkdir(exist_ok=True)
    assert index.ready_text("help") is not None


def test_damage_is_a_miss_not_a_fault(tmp_path: Path) -> None:
    build.build()
    path = index_file(tmp_path)
    whole = path.read_bytes()
    sound = {name: index.ready_text(name) for name in ("help", "list", "list-json", "data")}
    chance = random.Random(7)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])]))
        for name, text in sound.items():
            assert index.ready_text(name) in (None, text)
    path.write_bytes(b"")
    assert host.load().command("info") is not None
    assert index.ready_text("help") is not None  # rebuilt silently


def test_unwritable_cache_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert host.load().command("info") is not None
    assert index.ready_text("help") is None


def test_no_cache_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APT_NO_CACHE", "1")
    host.load()
    assert not (tmp_path / "cache").exists()


def test_indexes_of_forgotten_environments_are_swept(tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "apt_model"
    directory.mkdir(parents=True)
    (directory / "index-00000000").write_text("old")
    os.utime(directory / "index-00000000", (1, 1))
    build.build()
    assert not (directory / "index-00000000").exists()


def test_replace_file_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        index.replace_file(str(tmp_path / "directory"), b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory"]
