"""A backup store in a directory: on a disk, or on anything that can be mounted.

Layout::

    apt-store.json                      {"format": 1}
    objects/ab/cdef…                    pieces by SHA-256, each stored once
    versions/NAME/000001/manifest       a version; it is there when this file is there
    incoming/…                          what running backups are writing, swept when its owner is gone

Everything is written aside, flushed and renamed, pieces before the manifest that names them: a backup that is
killed anywhere leaves the older versions as they were, and its finished pieces for the next run. The number of a
version is claimed by ``mkdir``, which exactly one of several writers wins on any file system, with or without hard
links and locks.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.atomic import atomic_file, fsync_directory
from apt.checkpoint.reader import read_json
from apt.console.errors import (
    WRITE_REFUSALS,
    BadInputError,
    CannotWriteError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from apt.plugins.builtin.cloud_storage.manifest import Manifest, PieceRef, check_name
from apt.registry import did_you_mean

_MARKER: Final = "apt-store.json"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Version:
    """A version in the store; ``manifest`` is ``None`` when it is damaged, and ``fault`` says how."""

    name: str
    number: int
    manifest: Manifest | None
    manifest_bytes: int
    fault: str = ""

    @property
    def label(self) -> str:
        """``NAME@NUMBER``."""
        return f"{self.name}@{self.number}"


class LocalStore:
    """A store in a directory; made with :meth:`open` or :meth:`create`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, root: Path) -> "LocalStore":
        """Open a store for reading.

        :raises NotFoundError: when there is none.
        """
        marker = root / _MARKER
        if not marker.is_file():
            raise NotFoundError(f"no backup store at {root}", hint="cloud-storage backup makes one")
        if read_json(marker).get("format") != _FORMAT:
            raise UnsupportedError(f"{root}: a store of another version of apt_model")
        return cls(root)

    @classmethod
    def create(cls, root: Path) -> "LocalStore":
        """Open a store, making it in a new or empty directory.

        :raises UsageError: for a directory that holds something else.
        :raises CannotWriteError: when it cannot be made.
        """
        marker = root / _MARKER
        if not marker.is_file():
            foreign = root.is_dir() and any(not p.name.startswith(".") for p in root.iterdir())
            # Another writer may have made the store since the first look: what fills the directory is then its own.
            if foreign and not marker.is_file():
                raise UsageError(f"{root} is not empty and no backup store", hint="give a new or an empty directory")
            if os.path.lexists(root) and not root.is_dir():
                raise UsageError(f"{root} is not a directory", hint="a backup store is a directory")
            with atomic_file(marker, overwrite=True) as stream:
                stream.write(b'{"format": %d}\n' % _FORMAT)
        return cls.open(root)

    def names(self) -> list[str]:
        """Return the names that have versions, sorted."""
        versions = self.root / "versions"
        return sorted(p.name for p in versions.iterdir() if self._numbers(p.name)) if versions.is_dir() else []

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a name, oldest first; damaged ones too, with their fault."""
        return [self._read_version(name, number) for number in self._numbers(name)]

    def find(self, name: str, version: str = "") -> Version:
        """Return a version by number or tag, or the newest.

        :raises NotFoundError: when it is not there.
        :raises BadInputError: when its manifest is damaged.
        """
        found = self.versions(check_name(name))
        if not found:
            raise NotFoundError(f"{self.root} holds no backup {name!r}", hint=did_you_mean(name, self.names()))
        if not version:
            chosen = found[-1:]
        elif version.isdecimal():
            chosen = [v for v in found if v.number == int(version)]
        else:
            chosen = [v for v in found if v.manifest and v.manifest.tag == version]
        if not chosen:
            have = ", ".join(str(v.number) for v in found)
            raise NotFoundError(f"{name!r} has no version {version!r}", hint=f"it has {have}")
        if chosen[0].manifest is None:
            raise BadInputError(f"{chosen[0].label}: {chosen[0].fault}", hint="restore another version")
        return chosen[0]

    def has(self, piece: PieceRef) -> bool:
        """Whether a piece of that digest and size lies in the store; its content is not read."""
        with suppress(OSError):
            return self._object(piece.digest).stat().st_size == piece.size_bytes
        return False

    def get(self, piece: PieceRef) -> bytes:
        """Return a piece.

        :raises BadInputError: when it is missing or is not what its digest says.
        """
        path = self._object(piece.digest)
        try:
            with path.open("rb") as stream:
                data = stream.read(piece.size_bytes + 1)
        except FileNotFoundError:
            raise BadInputError(f"the stored piece {piece.digest[:16]} is missing") from None
        if len(data) != piece.size_bytes:
            raise BadInputError(f"the stored piece {piece.digest[:16]} has a wrong size")
        if hashlib.sha256(data).hexdigest() != piece.digest:
            raise BadInputError(f"the stored piece {piece.digest[:16]} is corrupted (its SHA-256 does not match)")
        return data

    @contextmanager
    def writer(self) -> Iterator["StoreWriter"]:
        """Yield a writer with a directory of its own under ``incoming``.

        :raises CannotWriteError: when the store cannot be written, or the disk is full.
        """
        try:
            aside = self._claim_incoming()
            try:
                yield StoreWriter(self, Path(aside[0]))
            finally:
                shutil.rmtree(aside[0], ignore_errors=True)
                os.close(aside[1])
        except OSError as error:
            if error.errno not in WRITE_REFUSALS:
                raise
            raise CannotWriteError(
                f"cannot write to {self.root}: {error.strerror}",
                hint="the older versions are intact; the same call goes on where this one stopped",
            ) from error

    def _object(self, digest: str) -> Path:
        return self.root / "objects" / digest[:2] / digest[2:]

    def _numbers(self, name: str) -> list[int]:
        folder = self.root / "versions" / name
        if not folder.is_dir():
            return []
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and (p / "manifest").is_file())

    def _read_version(self, name: str, number: int) -> Version:
        path = self._manifest_path(name, number)
        raw = path.read_bytes()
        try:
            return Version(name, number, Manifest.decode(raw, where=str(path)), len(raw))
        except BadInputError as error:
            return Version(name, number, None, len(raw), error.message)

    def _manifest_path(self, name: str, number: int) -> Path:
        return self.root / "versions" / name / f"{number:06d}" / "manifest"

    def _claim_incoming(self) -> tuple[Path, int]:
        """Make and lock a directory for this writer, after sweeping those whose owner is gone."""
        incoming = self.root / "incoming"
        incoming.mkdir(exist_ok=True)
        for leftover in incoming.iterdir():
            with _locked(leftover, wait=False) as free:
                if free:
                    shutil.rmtree(leftover, ignore_errors=True)
        while True:
            path = incoming / secrets.token_hex(8)
            path.mkdir()
            # Another writer's sweep may take the directory before it is opened or locked; then make another.
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            _lock(descriptor, wait=True)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return path, descriptor
            os.close(descriptor)


class StoreWriter:
    """Adds pieces and versions to a store; from :meth:`LocalStore.writer`."""

    def __init__(self, store: LocalStore, aside: Path) -> None:
        self._store = store
        self._aside = aside
        self._unflushed: set[Path] = set()

    def put(self, digest: str, data: bytes) -> bool:
        """Store a piece, and return whether it had to be written.

        A piece that is there already is compared, not trusted: one that was corrupted since is replaced.
        """
        target = self._store._object(digest)
        if _holds(target, data):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        self._write(data).replace(target)
        self._unflushed.update((target.parent, target.parent.parent))
        return True

    def publish(self, name: str, build: Callable[[list[Version]], Manifest | Version]) -> Version:
        """Add a version, after everything that it names is on the disk.

        ``build`` is called with all versions of the store while no other writer of this name publishes; it returns
        the manifest, or the version that stands for it already.
        """
        for folder in self._unflushed:
            fsync_directory(folder)
        folder = self._store.root / "versions" / check_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, wait=True):
            built = build([v for n in self._store.names() for v in self._store.versions(n)])
            if isinstance(built, Version):
                return built
            raw = built.encode()
            written = self._write(raw)
            number = self._claim_number(folder)
            target = self._store._manifest_path(name, number)
            written.replace(target)
            for changed in (target.parent, folder, folder.parent, self._store.root):
                fsync_directory(changed)
        return Version(name, number, built, len(raw))

    def _claim_number(self, folder: Path) -> int:
        taken = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]
        number = max(taken, default=0) + 1
        while True:
            try:
                (folder / f"{number:06d}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return number

    def _write(self, data: bytes) -> Path:
        path = self._aside / secrets.token_hex(8)
        with path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return path


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file holds exactly these bytes."""
    try:
        if path.stat().st_size != len(data):
            return False
        with path.open("rb") as stream:
            return stream.read(len(data) + 1) == data
    except OSError:
        return False


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a directory's lock, which the system gives back when a process dies; yields whether it was obtained."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(descriptor, wait=wait)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open directory. Where the file system has no locks, waiting ones go on and others are told no."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
