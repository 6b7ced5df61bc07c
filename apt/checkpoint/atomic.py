"""Outputs that are there whole or not at all.

A result is written into a hidden sibling, flushed to the disk, and renamed once. Replacing an existing target
exchanges the two names in one system call (``RENAME_EXCHANGE``, Linux); where the file system has no such call, a
small journal makes the two renames recoverable by whoever opens the target next.
"""

import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from apt.console.errors import WRITE_REFUSALS, CannotWriteError, TargetExistsError, system_error

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_NOT_OFFERED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
#: An exchange is two renames: one that takes longer than this has been given up, whoever bears its process number now.
_PATIENCE_SECONDS: Final = 5.0


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty hidden directory that becomes ``target`` when the block ends without an exception.

    :param sources: what the result is made of; a target that holds one of them is not replaced.
    :raises TargetExistsError: when ``target`` exists and ``overwrite`` is false, or is a device, a pipe or a socket;
        nothing is written then.
    :raises CannotWriteError: when the place cannot be written or the disk is full; nothing is left then.
    """
    if overwrite:
        _refuse_to_lose(target, sources)
    target = _prepare(target, overwrite)
    _refuse_to_replace(target, directory=True)
    aside = _aside_name(target)
    with _told_as_cannot_write(target):
        aside.mkdir()
        try:
            yield aside
            _fsync_tree(aside)
            _refuse_to_replace(target, directory=True)
            _publish(aside, target, overwrite)
        finally:
            # After an exchange the hidden name holds the old target; after a failure, the unfinished new one.
            shutil.rmtree(aside, ignore_errors=True)


def check_target(target: Path, *, overwrite: bool = False, sources: Iterable[Path] = ()) -> None:
    """Refuse what :func:`atomic_directory` would refuse as a target, before hours of work that are to go there.

    Nothing is written.

    :raises TargetExistsError: as there.
    """
    if overwrite:
        _refuse_to_lose(target, sources)
    _refuse_to_replace(_free(target, overwrite), directory=True)


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``target`` when the block ends without an exception.

    :raises TargetExistsError: when ``target`` exists and ``overwrite`` is false, or is a directory, a device, a pipe or
        a socket; nothing is written then.
    :raises CannotWriteError: when the place cannot be written or the disk is full; nothing is left then.
    """
    target = _prepare(target, overwrite)
    _refuse_to_replace(target, directory=False)
    aside = _aside_name(target)
    with _told_as_cannot_write(target):
        try:
            with aside.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if overwrite:
                _refuse_to_replace(target, directory=False)
                aside.replace(target)
            else:
                _rename_new(aside, target)
            fsync_directory(target.parent)
        finally:
            aside.unlink(missing_ok=True)


def recover(target: Path) -> None:
    """Finish or undo an exchange that was interrupted between its two renames; one that is under way is waited for.

    Called before a target is read or written. Costs one failed ``stat`` in the common case.
    """
    if not target.name:  # ``.`` or the root, which nothing replaces
        return
    journal = _journal_name(target)
    if not journal.exists():
        return
    with suppress(OSError):  # the journal stays then, and the next call tries again
        try:
            names = json.loads(journal.read_text(encoding="utf-8"))
            new, old = (target.parent / Path(str(names[key])).name for key in ("new", "old"))
        except (ValueError, KeyError, TypeError):
            journal.unlink()  # no journal of ours
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while _owner_lives(new) and time.monotonic() < deadline:
            time.sleep(0.01)
            if not journal.exists():
                return
        if not target.exists():
            (new if new.exists() else old).rename(target)
            fsync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        journal.unlink()


def _refuse_to_lose(target: Path, sources: Iterable[Path]) -> None:
    """Refuse to replace a directory that holds more than an earlier output.

    :raises TargetExistsError: when the working directory, the home directory or a source lies in ``target``.
    """
    place = target.resolve()
    kept = [("the current directory", Path.cwd()), *(("the source", source) for source in sources)]
    with suppress(RuntimeError):  # no home directory
        kept.append(("the home directory", Path.home()))
    for what, path in kept:
        if path.resolve().is_relative_to(place):
            raise TargetExistsError(
                f"{place} holds {what} and is not replaced, --overwrite or not", hint="choose another output"
            )


def _refuse_to_replace(target: Path, *, directory: bool) -> None:
    """Refuse to put a file in the place of what is none, and a directory in that of a device, a pipe or a socket.

    A link is judged by what it leads to: ``/dev/stdout`` is a device, whatever stands between.

    :raises TargetExistsError: naming what is there.
    """
    try:
        mode = target.stat().st_mode
    except (OSError, ValueError):  # nothing, or a link that leads nowhere
        return
    if stat.S_ISREG(mode) or (directory and stat.S_ISDIR(mode)):
        return
    what = "a directory" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
    raise TargetExistsError(f"{target} is {what} and is not replaced, --overwrite or not", hint="choose another output")


def _free(target: Path, overwrite: bool) -> Path:
    """Return the whole path of a target that is not there, or may be replaced.

    :raises TargetExistsError: when there is something, a link that leads nowhere too, and ``overwrite`` is false.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - a link as target stays one, resolve() would follow it
    with suppress(OSError):
        recover(target)
    if not overwrite and os.path.lexists(target):
        raise TargetExistsError(f"{target} exists already", hint="choose another output or give --overwrite")
    return target


def _prepare(target: Path, overwrite: bool) -> Path:
    """Check the target, make its parent, and clear away what killed processes left beside it."""
    target = _free(target, overwrite)
    with _told_as_cannot_write(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if _owner_lives(leftover) is False:
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return target


def _aside_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum())[:32]


def _owner_lives(hidden: Path) -> bool | None:
    """Whether the process that made a hidden sibling is still there; ``None`` for one of another host."""
    parts = hidden.name.removesuffix(".partial").rpartition(".")[2].split("-")
    if len(parts) != 3 or parts[0] != _host() or not parts[1].isdigit():
        return None
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def _told_as_cannot_write(target: Path) -> Iterator[None]:
    """Turn the system's refusals to write into one line that names the target."""
    try:
        yield
    except Exception as error:
        refusal = system_error(error)
        if refusal is None or refusal.errno not in WRITE_REFUSALS | {errno.ENOTDIR, errno.ENAMETOOLONG}:
            raise
        raise CannotWriteError(
            f"cannot write {target}: {refusal.strerror}", hint="free space or choose another output"
        ) from error


def _publish(aside: Path, target: Path, overwrite: bool) -> None:
    if overwrite and os.path.lexists(target):
        try:
            _renameat2(aside, target, _RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            _exchange_with_journal(aside, target)
    else:
        _rename_new(aside, target)
    fsync_directory(target.parent)


def _rename_new(aside: Path, target: Path) -> None:
    """Rename, refusing a target that somebody else made meanwhile."""
    try:
        _renameat2(aside, target, _RENAME_NOREPLACE)
    except FileExistsError:
        raise TargetExistsError(f"{target} was made by another process meanwhile") from None
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        if os.path.lexists(target):
            raise TargetExistsError(f"{target} was made by another process meanwhile") from None
        aside.rename(target)


def _exchange_with_journal(aside: Path, target: Path) -> None:
    """Replace ``target`` by two renames with a journal that :func:`recover` can finish."""
    old = _aside_name(target)
    journal, draft = _journal_name(target), _aside_name(target)
    with draft.open("w", encoding="utf-8") as stream:
        json.dump({"new": aside.name, "old": old.name}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(journal)
    fsync_directory(target.parent)
    try:
        target.rename(old)
        aside.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        journal.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)
    journal.unlink()
    shutil.rmtree(old, ignore_errors=True)


def _journal_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.exchange")


def _renameat2(source: Path, target: Path, flags: int) -> None:
    """Call Linux's ``renameat2``; raises ``OSError(ENOSYS)`` where the C library has none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, "renameat2 is not offered")
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _fsync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(Path(folder))


def fsync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a directory; the rename itself has been done.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
