"""``cloud-storage restore`` and ``list``: what a store holds, and getting it back bit for bit."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from apt.checkpoint.atomic import atomic_directory
from apt.console.errors import AptError, BadInputError, UsageError
from apt.console.progress import progress
from apt.console.table import Table
from apt.options import Options, OutputPath, Overwrite
from apt.plugins.builtin.cloud_storage.local_store import LocalStore, Version
from apt.plugins.builtin.cloud_storage.manifest import FileEntry, PieceRef
from apt.plugins.builtin.cloud_storage.pieces import tensor_at
from apt.plugins.builtin.cloud_storage.urls import store_root


class RestoreOptions(Options):
    """Which version to restore where."""

    name: str = Field(description="NAME, NAME@VERSION or NAME@TAG.")
    source: str = Field(description="The store: file:///path, or a path.")
    output: OutputPath
    version: int | str = Field(default="", description="A number or a tag; the newest version when empty.")
    overwrite: Overwrite = False


@dataclass(frozen=True)
class RestoreResult:
    """What was restored; every piece and every file was checked against its SHA-256."""

    path: Path
    store: str
    name: str
    version: int
    digest: str
    files: int
    size_bytes: int
    verified_pieces: int
    verified_files: int
    dry_run: bool = False

    def tables(self) -> list[Table]:
        """One table of facts."""
        rows = [
            ("version", f"{self.name}@{self.version}"),
            ("written to", str(self.path)),
            ("files", f"{self.files} ({self.verified_files} verified)"),
            ("size, bytes", f"{self.size_bytes:,}"),
            ("sha256 of the content", self.digest),
        ]
        return [Table("would be restored" if self.dry_run else "restored", ("", ""), rows)]


class ListOptions(Options):
    """Which store to list, and of which name only."""

    source: str = Field(description="The store: file:///path, or a path.")
    name: str = Field(default="", description="List this backup only.")


@dataclass(frozen=True)
class VersionInfo:
    """A version; ``fault`` is empty for a sound one, and the figures of a damaged one are 0."""

    name: str
    version: int
    tag: str
    created: str
    source: str
    digest: str
    files: int
    tensors: int
    size_bytes: int
    new_bytes: int
    fault: str


@dataclass(frozen=True)
class ListResult:
    """The versions of a store, by name and number."""

    store: str
    versions: tuple[VersionInfo, ...]

    def tables(self) -> list[Table]:
        """A row for each version."""
        rows = [
            (
                f"{v.name}@{v.version}",
                v.tag,
                v.created,
                f"{v.size_bytes:,}",
                f"{v.new_bytes:,}",
                str(v.tensors),
                v.fault,
            )
            for v in self.versions
        ]
        columns = ("version", "tag", "date", "size, bytes", "new, bytes", "tensors", "fault")
        return [Table(f"backups in {self.store}", columns, rows)]


def restore(options: RestoreOptions) -> RestoreResult:
    """Restore a version into a new directory, bit for bit.

    :raises BadInputError: naming file and tensor when a piece is missing or corrupted; nothing is left then.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    store, version, files = _find(options)
    pieces = 0
    size = sum(f.size_bytes for f in files)
    with (
        atomic_directory(options.output, overwrite=options.overwrite, sources=[store.root]) as aside,
        progress("restoring", size, "bytes") as bar,
    ):
        for file in files:
            pieces += _restore_file(store, version, file, aside, bar.advance)
    return _result(store, version, options, pieces, len(files))


def plan_restore(options: RestoreOptions) -> RestoreResult:
    """Return what :func:`restore` would write; that its pieces are there is checked, their content is not read."""
    store, version, files = _find(options)
    for file in files:
        for piece in file.pieces:
            if not store.has(piece):
                raise BadInputError(f"{version.label}: {file.path}: the stored piece {piece.digest[:16]} is missing")
    return _result(store, version, options, 0, 0, dry_run=True)


def list_backups(options: ListOptions) -> ListResult:
    """List a store's versions.

    :raises NotFoundError: when there is no store, or no backup of the name.
    """
    store = LocalStore.open(store_root(options.source))
    if options.name:
        store.find(options.name)
    names = [options.name] if options.name else store.names()
    versions = [_info(v) for name in names for v in store.versions(name)]
    return ListResult(store.root.absolute().as_uri(), tuple(versions))


def _find(options: RestoreOptions) -> tuple[LocalStore, Version, tuple[FileEntry, ...]]:
    name, _, inline = options.name.partition("@")
    asked = str(options.version)
    if inline and asked and inline != asked:
        raise UsageError(f"two versions were asked for: {inline} and {asked}")
    store = LocalStore.open(store_root(options.source))
    version = store.find(name, asked or inline)
    assert version.manifest is not None
    return store, version, version.manifest.files


def _restore_file(
    store: LocalStore, version: Version, file: FileEntry, aside: Path, advance: Callable[[float], None]
) -> int:
    """Write a file from its pieces, and return their number."""
    target = aside.joinpath(*file.path.split("/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with target.open("xb") as stream:
        for piece in file.pieces:
            try:
                data = store.get(piece)
            except BadInputError as error:
                stream.flush()
                tensor = _tensor_of(file, piece, target)
                where = f"{file.path}, tensor {tensor}" if tensor else file.path
                raise BadInputError(
                    f"{version.label}: {where}: {error.message}",
                    hint="nothing was restored; back the model up again to mend the piece, or restore another version",
                ) from None
            whole.update(data)
            stream.write(data)
            advance(len(data))
    if whole.hexdigest() != file.sha256:
        raise BadInputError(f"{version.label}: {file.path}: the SHA-256 of the whole file does not match its manifest")
    return len(file.pieces)


def _tensor_of(file: FileEntry, bad: PieceRef, target: Path) -> str:
    """Name the tensor that a piece belongs to, by the header that was written before it."""
    offset = 0
    for piece in file.pieces:
        if piece is bad:
            break
        offset += piece.size_bytes
    try:
        with target.open("r+b") as stream:  # the header tells the tensors only of a file of full length
            stream.truncate(file.size_bytes)
        return tensor_at(target, offset)
    except (AptError, OSError):
        return ""


def _result(
    store: LocalStore, version: Version, options: RestoreOptions, pieces: int, files: int, *, dry_run: bool = False
) -> RestoreResult:
    manifest = version.manifest
    assert manifest is not None
    return RestoreResult(
        path=options.output,
        store=store.root.absolute().as_uri(),
        name=version.name,
        version=version.number,
        digest=manifest.digest,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        verified_pieces=pieces,
        verified_files=files,
        dry_run=dry_run,
    )


def _info(version: Version) -> VersionInfo:
    m = version.manifest
    return VersionInfo(
        name=version.name,
        version=version.number,
        tag=m.tag if m else "",
        created=m.created if m else "",
        source=m.source if m else "",
        digest=m.digest if m else "",
        files=len(m.files) if m else 0,
        tensors=m.tensors_total if m else 0,
        size_bytes=m.size_bytes if m else 0,
        new_bytes=m.new_object_bytes + version.manifest_bytes if m else 0,
        fault=version.fault,
    )
