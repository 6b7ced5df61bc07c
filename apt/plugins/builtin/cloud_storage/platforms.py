"""Where whole models are uploaded to and downloaded from, by the platform's name.

A platform is a pair of functions. Both check what arrived: nothing is reported as done on a client library's word.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint import hub
from apt.checkpoint.atomic import atomic_directory
from apt.checkpoint.reader import file_digest
from apt.console.errors import BadInputError, NotFoundError, UnsupportedError
from apt.console.progress import progress
from apt.plugins.builtin.cloud_storage import modelscope
from apt.plugins.builtin.cloud_storage.sources import source_files
from apt.plugins.builtin.cloud_storage.urls import store_root
from apt.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class Sent:
    """What an upload ended with: the full name of the repository, its revision (empty where there is none), a URL."""

    repository: str
    revision: str
    url: str


@dataclass(frozen=True, slots=True)
class Received:
    """What a download brought: the revision (empty where there is none), files and their bytes."""

    revision: str
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Platform:
    """``upload(repository, files by name)`` and ``download(repository, revision, empty directory)``."""

    upload: Callable[[str, Mapping[str, Path]], Sent]
    download: Callable[[str, str, Path], Received]


def platform(name: str) -> Platform:
    """Return a platform.

    :raises UnsupportedError: for one that this version does not cover.
    """
    if name in PLATFORMS:
        return PLATFORMS[name]
    if name.replace("-", "").replace("_", "") in ("googledrive", "gdrive"):
        raise UnsupportedError(
            "Google Drive is not supported", hint="use a mounted folder: --platform local --repo DIR"
        )
    if name in ("s3", "oss"):
        raise UnsupportedError(
            f"this version does not speak {name} itself",
            hint="mount the bucket as a folder and use --platform local, or back up to file:///the/mount",
        )
    raise UnsupportedError(f"no platform is called {name!r}", hint=did_you_mean(name, PLATFORMS))


def _upload_huggingface(repository: str, files: Mapping[str, Path]) -> Sent:
    held = hub.upload(repository, files)
    return Sent(held.repository, held.commit, f"{hub.endpoint()}/{held.repository}/tree/{held.commit}")


def _download_huggingface(repository: str, revision: str, directory: Path) -> Received:
    found = hub.revision(repository, revision or "main")
    files = hub.checked_paths(f for f in found.files if f.path != ".gitattributes")
    size = sum(f.size_bytes for f in files)
    with progress(f"downloading {repository}", size, "bytes") as bar:
        for file in files:
            target = directory / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            hub.fetch(found, file, target, advance=bar.advance)
    return Received(found.commit, len(files), size)


def _upload_local(repository: str, files: Mapping[str, Path]) -> Sent:
    target = store_root(repository).absolute()
    with atomic_directory(target) as aside:
        _copy_checked(files, aside)
    return Sent(str(target), "", target.as_uri())


def _download_local(repository: str, revision: str, directory: Path) -> Received:
    if revision:
        raise UnsupportedError("a folder has no revisions", hint="leave --revision out")
    source = store_root(repository)
    if not source.is_dir():
        raise NotFoundError(f"no folder {source}")
    _, files = source_files(str(source.absolute()))
    _copy_checked({f.name: f.path for f in files}, directory)
    return Received("", len(files), sum(f.size_bytes for f in files))


def _copy_checked(files: Mapping[str, Path], directory: Path) -> None:
    """Copy files, and read each copy back."""
    import shutil

    with progress("copying", len(files), "files") as bar:
        for name, path in files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if file_digest(target) != file_digest(path):
                raise BadInputError(
                    f"{path} arrived altered at {target.parent}", hint="is the file still being written?"
                )
            bar.advance()


def _upload_modelscope(repository: str, files: Mapping[str, Path]) -> Sent:
    modelscope.upload(modelscope.connect(), repository, files)
    return Sent(repository, "", "")


def _download_modelscope(repository: str, revision: str, directory: Path) -> Received:
    files, size = modelscope.download(modelscope.connect(), repository, revision, directory)
    return Received(revision, files, size)


PLATFORMS: Final[Mapping[str, Platform]] = {
    "huggingface": Platform(_upload_huggingface, _download_huggingface),
    "modelscope": Platform(_upload_modelscope, _download_modelscope),
    "local": Platform(_upload_local, _download_local),
}
