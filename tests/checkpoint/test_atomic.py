"""Outputs are there whole or not at all: refusals, exchange, kills, a full disk."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from apt.checkpoint import atomic
from apt.console.errors import CannotWriteError, TargetExistsError


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def write(target: Path, text: str, **options: bool) -> None:
    with atomic.atomic_directory(target, **options) as aside:
        (aside / "file").write_text(text)


def test_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with atomic.atomic_directory(target) as aside:
        (aside / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert names(target.parent) == ["model"]


def test_existing_target_is_refused_and_untouched(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    with pytest.raises(TargetExistsError, match="--overwrite"):
        write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic.atomic_directory(tmp_path / "model") as aside:
        (aside / "file").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == []


def test_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    with pytest.raises(RuntimeError), atomic.atomic_directory(tmp_path / "model", overwrite=True) as aside:
        (aside / "file").write_text("new")
        raise RuntimeError
    assert (tmp_path / "model" / "file").read_text() == "old"


@pytest.mark.parametrize("exchange_is_offered", [True, False])
def test_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange_is_offered: bool) -> None:
    if not exchange_is_offered:

        def refuse(source: Path, target: Path, flags: int) -> None:
            raise OSError(errno.EINVAL, "not offered")

        monkeypatch.setattr(atomic, "_renameat2", refuse)
    write(tmp_path / "model", "old")
    write(tmp_path / "model", "new", overwrite=True)
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("present", "expected"), [(("new", "old"), "new"), (("old",), "old"), (("model", "old"), "model")]
)
def test_recover_after_a_kill_between_the_renames(tmp_path: Path, present: tuple[str, ...], expected: str) -> None:
    files = {"new": ".model.new", "old": ".model.old", "model": "model"}
    for name in present:
        (tmp_path / files[name]).mkdir()
        (tmp_path / files[name] / "file").write_text(name)
    (tmp_path / ".model.exchange").write_text(json.dumps({"new": ".model.new", "old": ".model.old"}))
    atomic.recover(tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == expected
    assert names(tmp_path) == ["model"]


def exchange_of(tmp_path: Path, pid: int) -> tuple[Path, Path, Path]:
    """An exchange by the process ``pid`` that has done its first rename only: journal, new and old directory."""
    new, old = (tmp_path / f".model.{atomic._host()}-{pid}-{word}.partial" for word in ("aaaa", "bbbb"))
    for path, text in ((new, "new"), (old, "old")):
        path.mkdir()
        (path / "file").write_text(text)
    journal = tmp_path / ".model.exchange"
    journal.write_text(json.dumps({"new": new.name, "old": old.name}))
    return journal, new, old


def test_an_exchange_under_way_is_waited_for_and_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, new, old = exchange_of(tmp_path, os.getpid())

    def finish(_seconds: float) -> None:
        assert new.exists() and old.exists() and not (tmp_path / "model").exists()
        new.rename(tmp_path / "model")
        journal.unlink()

    monkeypatch.setattr(atomic.time, "sleep", finish)
    atomic.recover(tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert old.exists()  # its maker's to remove


def test_patience_with_an_exchange_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange_of(tmp_path, os.getpid())
    monkeypatch.setattr(atomic, "_PATIENCE_SECONDS", 0.0)
    atomic.recover(tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_an_exchange_whose_second_rename_fails_is_undone(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    with pytest.raises(FileNotFoundError):
        atomic._exchange_with_journal(tmp_path / "nowhere", tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_journal_never_reaches_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    place = tmp_path / "place"
    place.mkdir()
    (place / "model").mkdir()
    (place / ".model.exchange").write_text(json.dumps({"new": "../victim", "old": "../victim"}))
    atomic.recover(place / "model")
    assert victim.exists()


def test_killed_writer_leaves_no_target_and_the_next_one_clears_up(tmp_path: Path) -> None:
    code = f"""
import os, signal, pathlib
from apt.checkpoint.atomic import atomic_directory
with atomic_directory(pathlib.Path({str(tmp_path / "model")!r})) as aside:
    (aside / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert names(tmp_path)[0].endswith(".partial")
    write(tmp_path / "model", "whole")
    assert names(tmp_path) == ["model"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with atomic.atomic_directory(tmp_path / "model") as first:
        write(tmp_path / "model", "second")
        assert first.exists()
        (tmp_path / "model" / "file").unlink()
        (tmp_path / "model").rmdir()
    assert names(tmp_path) == ["model"]


def test_race_is_lost_without_damage(tmp_path: Path) -> None:
    with pytest.raises(TargetExistsError, match="meanwhile"), atomic.atomic_directory(tmp_path / "model"):
        write(tmp_path / "model", "winner")
    assert (tmp_path / "model" / "file").read_text() == "winner"


def test_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CannotWriteError), atomic.atomic_file(tmp_path / "file") as stream:
            stream.write(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a dropped uid can only be shown by root")
def test_read_only_place_is_one_clear_line() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        code = f"""
import os, pathlib
from apt.checkpoint.atomic import atomic_directory
from apt.console.errors import CannotWriteError
os.setuid(65534)
try:
    with atomic_directory(pathlib.Path({place!r}, "model")):
        raise SystemExit("written")
except CannotWriteError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.startswith(f"cannot write {place}/model: Permission denied")
        assert names(Path(place)) == []


@pytest.mark.parametrize("target", [".", "..", "", "/", "linked"])
def test_overwrite_spares_a_directory_that_holds_more_than_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    here = tmp_path / "project" / "here"
    here.mkdir(parents=True)
    (here / "notes").write_text("mine")
    (here / "linked").symlink_to(tmp_path / "project")
    monkeypatch.chdir(here)
    with pytest.raises(TargetExistsError, match="the current directory"):
        write(Path(target), "new", overwrite=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(here))
    with pytest.raises(TargetExistsError, match="the home directory"):
        write(here, "new", overwrite=True)
    assert (here / "notes").read_text() == "mine"


def test_overwrite_spares_the_source(tmp_path: Path) -> None:
    (tmp_path / "project" / "model").mkdir(parents=True)
    source = tmp_path / "project" / "model"
    for target in (source, source.parent):
        with (
            pytest.raises(TargetExistsError, match="the source"),
            atomic.atomic_directory(target, overwrite=True, sources=[source]),
        ):
            pass
    with atomic.atomic_directory(source / "out", overwrite=True, sources=[source]):
        pass
    assert names(source) == ["out"]


def test_places_that_no_output_can_have(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "model", tmp_path / ("long" * 64)):
        with pytest.raises(CannotWriteError, match="cannot write"):
            write(target, "new")
    atomic.recover(Path())  # has no name and so no journal
    atomic.recover(Path("/"))
    assert names(tmp_path) == ["file"]


def test_full_disk_as_safetensors_tells_it(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with (
            pytest.raises(CannotWriteError, match="model: File too large"),
            atomic.atomic_directory(tmp_path / "model") as d,
        ):
            save_file({"a": np.zeros(100_000)}, d / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert names(tmp_path) == []


def test_file(tmp_path: Path) -> None:
    with atomic.atomic_file(tmp_path / "f") as stream:
        stream.write(b"one")
    with pytest.raises(TargetExistsError), atomic.atomic_file(tmp_path / "f") as stream:
        stream.write(b"two")
    with atomic.atomic_file(tmp_path / "f", overwrite=True) as stream:
        stream.write(b"three")
    assert (tmp_path / "f").read_bytes() == b"three"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket", "directory"])
def test_what_is_no_file_is_never_replaced(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    match kind:
        case "pipe":
            os.mkfifo(target)
        case "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            target.symlink_to(tmp_path / "pipe")
        case "socket":
            monkeypatch.chdir(tmp_path)  # the name of a socket is short
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind("target")
        case "directory":
            target.mkdir()
    before = names(tmp_path), target.lstat().st_ino
    with pytest.raises(TargetExistsError, match="is not replaced"), atomic.atomic_file(target, overwrite=True):
        pytest.fail("nothing is written")
    if kind != "directory":
        with pytest.raises(TargetExistsError, match="a device, a pipe or a socket"):
            write(target, "new", overwrite=True)
    assert (names(tmp_path), target.lstat().st_ino) == before


def test_pipe_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(TargetExistsError), atomic.atomic_file(target, overwrite=True) as stream:
        stream.write(b"x")
        os.mkfifo(target)
    assert target.is_fifo() and names(tmp_path) == ["target"]
