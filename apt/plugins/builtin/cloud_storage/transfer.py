"""``cloud-storage upload`` and ``download``: whole models to and from a platform."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from apt.checkpoint.atomic import atomic_directory
from apt.console import output
from apt.console.errors import NotFoundError, UsageError
from apt.console.table import Table
from apt.options import Options, OutputPath, Overwrite
from apt.plugins.builtin.cloud_storage.platforms import platform
from apt.plugins.builtin.cloud_storage.sources import model_name, source_files
from apt.store import newest


class UploadOptions(Options):
    """What to upload where."""

    model: str = Field(default="", description="The model; the newest of the store when empty.")
    platform: str = Field(default="huggingface", description="huggingface, modelscope or local (a folder).")
    repository: str = Field(
        default="", description="OWNER/NAME, NAME, or a folder for local; the model's name when empty."
    )


class DownloadOptions(Options):
    """What to download where to."""

    repository: str = Field(description="OWNER/NAME, or a folder for local.")
    platform: str = Field(default="huggingface", description="huggingface, modelscope or local (a folder).")
    output: OutputPath
    revision: str = Field(default="", description="Branch, tag or commit.")
    overwrite: Overwrite = False


@dataclass(frozen=True)
class UploadResult:
    """What was sent; with a revision where the platform has revisions."""

    model: Path
    platform: str
    repository: str
    revision: str
    url: str
    files: int
    size_bytes: int
    dry_run: bool = False

    def tables(self) -> list[Table]:
        """One table of facts."""
        rows = [
            ("model", str(self.model)),
            ("to", f"{self.platform}: {self.repository}"),
            ("revision", self.revision),
            ("url", self.url),
            ("files", str(self.files)),
            ("size, bytes", f"{self.size_bytes:,}"),
        ]
        title = "would be uploaded" if self.dry_run else "uploaded and verified"
        return [Table(title, ("", ""), [row for row in rows if row[1]])]


@dataclass(frozen=True)
class DownloadResult:
    """What was received; every file was checked."""

    path: Path
    platform: str
    repository: str
    revision: str
    files: int
    size_bytes: int

    def tables(self) -> list[Table]:
        """One table of facts."""
        rows = [
            ("from", f"{self.platform}: {self.repository}"),
            ("revision", self.revision),
            ("written to", str(self.path)),
            ("files", str(self.files)),
            ("size, bytes", f"{self.size_bytes:,}"),
        ]
        return [Table("downloaded and verified", ("", ""), [row for row in rows if row[1]])]


def upload(options: UploadOptions) -> UploadResult:
    """Upload a model and check that the platform holds it; without a model the store's newest, named before.

    :raises NotFoundError: when there is no such model, or none in the store.
    :raises UnsupportedError: for a platform that this version does not cover.
    """
    return _upload(options, dry_run=False)


def plan_upload(options: UploadOptions) -> UploadResult:
    """Return what :func:`upload` would send, sending nothing."""
    return _upload(options, dry_run=True)


def download(options: DownloadOptions) -> DownloadResult:
    """Download a model into a new directory; every file is checked, and a bad one leaves nothing behind."""
    chosen = platform(options.platform)
    with atomic_directory(options.output, overwrite=options.overwrite) as aside:
        received = chosen.download(options.repository, options.revision, aside)
    return DownloadResult(
        path=options.output,
        platform=options.platform,
        repository=options.repository,
        revision=received.revision,
        files=received.files,
        size_bytes=received.size_bytes,
    )


def _upload(options: UploadOptions, *, dry_run: bool) -> UploadResult:
    chosen = platform(options.platform)
    model = options.model or _newest()
    root, files = source_files(model)
    repository = options.repository
    if not repository:
        if options.platform == "local":
            raise UsageError("the platform local needs a folder to upload to", hint="--repo DIR")
        repository = model_name(model)
    size = sum(f.size_bytes for f in files)
    verb = "would upload" if dry_run else "uploading"
    output.note(f"{verb} {root.name} ({len(files)} files, {size:,} bytes) to {options.platform}: {repository}")
    sent = None if dry_run else chosen.upload(repository, {f.name: f.path for f in files})
    return UploadResult(
        model=root,
        platform=options.platform,
        repository=sent.repository if sent else repository,
        revision=sent.revision if sent else "",
        url=sent.url if sent else "",
        files=len(files),
        size_bytes=size,
        dry_run=dry_run,
    )


def _newest() -> str:
    found = newest()
    if found is None:
        raise NotFoundError("no model was given, and the store holds none", hint="apt_model huggingface import …")
    output.note(f"no model was given: taking the newest in the store, {found.name}")
    return str(found)
