"""``cloud-storage backup``: a model becomes a version in a store, which keeps each tensor once."""

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from apt.console import output
from apt.console.errors import BadInputError, TargetExistsError
from apt.console.progress import Bar, progress
from apt.console.table import Table
from apt.options import ModelRef, Options
from apt.plugins.builtin.cloud_storage.local_store import LocalStore, Version
from apt.plugins.builtin.cloud_storage.manifest import FileEntry, Manifest, PieceRef, check_name
from apt.plugins.builtin.cloud_storage.pieces import cut
from apt.plugins.builtin.cloud_storage.sources import SourceFile, model_name, source_files
from apt.plugins.builtin.cloud_storage.urls import store_root


class BackupOptions(Options):
    """What to back up and where to.

    ``tag`` names the version for good: backing up the same content under the same tag again changes nothing and
    gives the same result; other content is refused.
    """

    model: ModelRef
    to: str = Field(description="The store: file:///path, or a path.")
    name: str = Field(default="", description="Name of the backup; the model's when empty.")
    tag: str = Field(default="", description="Names this version for good.")


@dataclass(frozen=True)
class BackupResult:
    """A version, as the store has recorded it.

    ``tensors_stored`` and ``new_bytes`` (manifest included) compare with what the store's versions held before.
    """

    store: str
    name: str
    version: int
    tag: str
    digest: str
    files: int
    size_bytes: int
    tensors_total: int
    tensors_stored: int
    new_bytes: int
    dry_run: bool = False

    def tables(self) -> list[Table]:
        """One table of facts."""
        rows = [
            ("version", f"{self.name}@{self.version}" + (f" ({self.tag})" if self.tag else "")),
            ("store", self.store),
            ("files", str(self.files)),
            ("size, bytes", f"{self.size_bytes:,}"),
            ("new in the store, bytes", f"{self.new_bytes:,}"),
            ("tensors", f"{self.tensors_total} ({self.tensors_stored} stored anew)"),
            ("sha256 of the content", self.digest),
        ]
        return [Table("would be backed up" if self.dry_run else "backed up", ("", ""), rows)]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A file whose pieces are in the store, with the tensor of each piece."""

    entry: FileEntry
    tensors: tuple[str, ...]


def backup(options: BackupOptions) -> BackupResult:
    """Back up a model, and return the version that holds it.

    When the newest version of the name (or the one with the tag) holds the same content already, that version is
    the result, figures included: running a recipe again gives what it gave.

    :raises TargetExistsError: when the tag stands for other content.
    :raises CannotWriteError: when the store cannot be written; its older versions are intact, and the same call goes
        on where this one stopped.
    """
    root, files, name = _prepare(options)
    store = LocalStore.create(store_root(options.to))
    with store.writer() as writer, _bar(files) as bar:
        sent = [_send(file, writer.put, bar) for file in files]
        version = writer.publish(name, lambda existing: _settle(existing, name, options, root, sent))
    return _result(store, version)


def plan_backup(options: BackupOptions) -> BackupResult:
    """Return what :func:`backup` would give, writing nothing; the manifest's bytes are those that it would take."""
    root, files, name = _prepare(options)
    location = store_root(options.to)
    store = LocalStore.open(location) if (location / "apt-store.json").is_file() else None
    with _bar(files) as bar:
        sent = [_send(file, lambda digest, data: False, bar) for file in files]
    versions = [v for n in store.names() for v in store.versions(n)] if store else []
    settled = _settle(versions, name, options, root, sent)
    if isinstance(settled, Manifest):
        number = max((v.number for v in versions if v.name == name), default=0) + 1
        settled = Version(name, number, settled, len(settled.encode()))
    return _result(store or LocalStore(location), settled, dry_run=True)


def _prepare(options: BackupOptions) -> tuple[Path, list[SourceFile], str]:
    if options.tag:
        check_name(options.tag)
        if options.tag.isdecimal():
            raise BadInputError(f"the tag {options.tag!r} would be taken for a version's number")
    name = check_name(options.name or model_name(options.model))
    root, files = source_files(options.model)
    return root, files, name


def _send(file: SourceFile, put: Callable[[str, bytes], bool], bar: Bar) -> _Sent:
    """Read a file once, a piece at a time, giving each piece to ``put``."""
    whole = hashlib.sha256()
    refs, tensors = [], []
    with file.path.open("rb") as stream:
        before = os.fstat(stream.fileno())
        pieces = cut(file.path, before.st_size)
        for piece in pieces:
            data = stream.read(piece.size_bytes)
            digest = hashlib.sha256(data).hexdigest()
            whole.update(data)
            refs.append(PieceRef(digest, len(data)))
            tensors.append(piece.tensor)
            if len(data) != piece.size_bytes:
                break
            put(digest, data)
            bar.advance(len(data))
        after = os.fstat(stream.fileno())
    size = sum(r.size_bytes for r in refs)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != before.st_size:
        raise BadInputError(f"{file.path} was changed while it was read", hint="run it again when the file is at rest")
    return _Sent(FileEntry(file.name, size, whole.hexdigest(), tuple(refs)), tuple(tensors))


def _settle(
    existing: list[Version], name: str, options: BackupOptions, root: Path, sent: list[_Sent]
) -> Manifest | Version:
    """Return the version that holds this content already, or the manifest of a new one."""
    manifest = _manifest(existing, options, root, sent)
    own = [v for v in existing if v.name == name]
    tagged = next((v for v in own if options.tag and v.manifest and v.manifest.tag == options.tag), None)
    if tagged and tagged.manifest and tagged.manifest.digest != manifest.digest:
        raise TargetExistsError(
            f"{name}@{options.tag} is version {tagged.number}, with other content", hint="give another --tag"
        )
    newest = own[-1] if own else None
    same = newest and newest.manifest and newest.manifest.digest == manifest.digest
    found = tagged or (newest if same and not options.tag else None)
    if found:
        output.note(f"unchanged: {found.label} holds this content already")
    return found or manifest


def _manifest(existing: list[Version], options: BackupOptions, root: Path, sent: list[_Sent]) -> Manifest:
    held = {p.digest for v in existing if v.manifest for f in v.manifest.files for p in f.pieces}
    new_bytes, total, stored = 0, 0, 0
    for file in sent:
        fresh: set[str] = set()
        for ref, tensor in zip(file.entry.pieces, file.tensors, strict=True):
            if ref.digest not in held:
                held.add(ref.digest)
                new_bytes += ref.size_bytes
                fresh.add(tensor)
        total += _count(file.tensors)
        stored += _count(fresh)
    return Manifest(
        source=root.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tag=options.tag,
        files=tuple(s.entry for s in sent),
        tensors_total=total,
        tensors_stored=stored,
        new_object_bytes=new_bytes,
    )


def _count(tensors: Iterable[str]) -> int:
    """Number of different tensors; pieces of headers have none."""
    return len({t for t in tensors if t})


def _bar(files: list[SourceFile]) -> AbstractContextManager[Bar]:
    return progress("backing up", sum(f.size_bytes for f in files), "bytes")


def _result(store: LocalStore, version: Version, *, dry_run: bool = False) -> BackupResult:
    manifest = version.manifest
    assert manifest is not None
    return BackupResult(
        store=store.root.absolute().as_uri(),
        name=version.name,
        version=version.number,
        tag=manifest.tag,
        digest=manifest.digest,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        tensors_total=manifest.tensors_total,
        tensors_stored=manifest.tensors_stored,
        new_bytes=manifest.new_object_bytes + version.manifest_bytes,
        dry_run=dry_run,
    )
