"""Drop-in code runs only from what nobody else could have written."""

import os
import stat
from pathlib import Path

import pytest

from apt.plugins import ownership

ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir(mode=0o755)
    path = directory / "one.py"
    path.write_text("")
    path.chmod(0o644)
    return path


def test_own_files_are_fine(file: Path) -> None:
    assert ownership.fault(file) == ""


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o602])
def test_world_writable_file_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert ownership.fault(file) == f"{file} can be written by others (mode {mode:04o}); chmod go-w {file}"


def test_world_writable_directory_is_refused_unless_it_is_sticky_above(file: Path) -> None:
    file.parent.chmod(0o777)
    assert "plugins can be written by others (mode 0777)" in ownership.fault(file)
    file.parent.chmod(0o1777)
    assert ownership.fault(file) == ""


def test_group_counts_unless_it_is_the_users_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o664)
    monkeypatch.setattr(ownership, "_own_group", lambda _gid: False)
    assert "can be written by others" in ownership.fault(file)
    monkeypatch.setattr(ownership, "_own_group", lambda _gid: True)
    assert ownership.fault(file) == ""


@ROOT_ONLY
def test_private_group_is_that_of_the_users_name(file: Path) -> None:
    assert ownership._own_group(0)  # root's group bears root's name
    assert not ownership._own_group(1)
    assert not ownership._own_group(987654)


@ROOT_ONLY
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_belongs_to_another_user_is_refused(file: Path, what: str) -> None:
    path = file if what == "file" else file.parent
    os.chown(path, 987654, -1)
    assert ownership.fault(file) == f"{path} belongs to the user 987654"


def test_package_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    inner = package / "deep" / "code.py"
    inner.write_text("")
    assert ownership.fault(package) == ""
    inner.chmod(0o666)
    assert ownership.fault(package).startswith(f"{inner} can be written")


@ROOT_ONLY
def test_every_link_on_the_way_counts(file: Path, tmp_path: Path) -> None:
    """Who owns a link in a sticky directory can lead it elsewhere."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "between").symlink_to(file)
    first = file.parent / "first.py"
    first.symlink_to("../shared/between")
    assert ownership.fault(first) == ""
    os.chown(shared / "between", 987654, -1, follow_symlinks=False)
    assert ownership.fault(first) == f"{shared / 'between'} belongs to the user 987654"
    (shared / "place").symlink_to(file.parent)
    assert ownership.fault(shared / "place" / file.name) == ""
    os.chown(shared / "place", 987654, -1, follow_symlinks=False)
    assert ownership.fault(shared / "place" / file.name) == f"{shared / 'place'} belongs to the user 987654"


def test_link_is_judged_by_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "real.py").write_text("")
    link = file.parent / "link.py"
    link.symlink_to(shared / "real.py")
    assert "shared can be written by others" in ownership.fault(link)


def test_what_is_gone_is_told(file: Path) -> None:
    file.unlink()
    assert ownership.fault(file) == f"{file} cannot be looked at: No such file or directory"
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o755


def test_link_to_a_directory_inside_a_package_is_refused(tmp_path: Path) -> None:
    """What lies behind it would be neither judged nor sealed."""
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    package.mkdir()
    elsewhere.mkdir()
    (package / "part").symlink_to(elsewhere)
    assert ownership.fault(package) == f"{package / 'part'} is a link to a directory; a drop-in holds its code itself"
    whole = tmp_path / "whole"
    whole.symlink_to(elsewhere)
    assert ownership.fault(whole) == ""
