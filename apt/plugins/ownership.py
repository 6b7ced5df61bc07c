"""Whose code a drop-in is: it runs only from files and directories that nobody else could have written.

The rule is that of ``ssh`` for its keys: the file, every directory of it and above it belong to the user or to root
and are not writable by others. A sticky directory (``/tmp``) may lie above, as nobody can replace there what is ours.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def fault(file: Path) -> str:
    """Return why a drop-in's file or directory may not be run, in one line; ``""`` when it may.

    A symbolic link is judged by itself, by all that lies on the way, and by what it leads to. Systems without
    owners find no fault.
    """
    if not hasattr(os, "getuid"):
        return ""
    try:
        for path in _inside(file):
            if path != file and path.is_symlink() and path.is_dir():  # what lies behind it is neither judged nor sealed
                return f"{path} is a link to a directory; a drop-in holds its code itself"
            if reason := _reason(path, path.stat(), above=False):
                return reason
            if path == file or path.is_symlink():
                for passed in _way(path):
                    if reason := _reason(passed, passed.lstat(), above=True):
                        return reason
    except OSError as error:
        return f"{error.filename or file} cannot be looked at: {error.strerror}"
    return ""


def _inside(file: Path) -> list[Path]:
    """Return everything that Python would read: the file, or the directory with its content."""
    found = [file]
    waiting = [file] if file.is_dir() else []
    while waiting:  # os.walk calls itself for each level, of which there may be more than Python allows
        for path in sorted(waiting.pop().iterdir()):
            found.append(path)
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)
    return found


def _way(path: Path) -> Iterator[Path]:
    """Yield what the system passes on the way to a path that exists: each directory and each link, not its end."""
    ahead = list(reversed(path.absolute().parts))
    here = Path(ahead.pop())
    yield here
    while ahead:
        part = ahead.pop()
        here = here.parent if part == ".." else here / part
        if here.is_symlink():
            yield here
            target = here.readlink()
            ahead += reversed(target.parts)
            here = Path(ahead.pop()) if target.is_absolute() else here.parent
        elif ahead:
            yield here


def _reason(path: Path, status: os.stat_result, *, above: bool) -> str:
    if status.st_uid not in (0, os.getuid()):
        return f"{path} belongs to the user {_user(status.st_uid)}"
    if stat.S_ISLNK(status.st_mode):  # it has no mode of its own; who can replace it, its directory says
        return ""
    others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _own_group(status.st_gid))
    if others and not (above and status.st_mode & stat.S_ISVTX):
        import shlex

        mode, quoted = stat.S_IMODE(status.st_mode), shlex.quote(str(path))
        return f"{path} can be written by others (mode {mode:04o}); chmod go-w {quoted}"
    return ""


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _own_group(gid: int) -> bool:
    """Whether a group is the user's private one: of his name and without another member."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}
