"""Which files of a model are backed up or uploaded, and what the model is called."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.atomic import recover
from apt.checkpoint.reader import member
from apt.console.errors import BadInputError, NotFoundError
from apt.plugins.builtin.cloud_storage.manifest import check_paths
from apt.store import resolve

#: Directories that are not the model: version control and download caches.
LEFT_OUT: Final = frozenset({".git", ".cache"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to send: where it is, and its path relative to the model, with ``/``."""

    path: Path
    name: str
    size_bytes: int


def model_name(ref: str) -> str:
    """Return what a model is called when nobody says otherwise.

    A snapshot in the Hugging Face cache is called by its repository, not by its commit.
    """
    if ref.startswith("hf:"):
        return ref.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    path = resolve(ref).absolute()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return re.sub(r"[^\w.+-]", "-", path.stem if path.is_file() else path.name).lstrip(".")


def source_files(ref: str) -> tuple[Path, list[SourceFile]]:
    """Return a model's path and its files, sorted by name; a single file is a model of one file.

    Symbolic links are followed where they stay inside the model (or the cache that it is part of).

    :raises NotFoundError: when there is no such model, or it holds no file.
    :raises BadInputError: for a link that leads outside, a device or pipe, or a name that cannot be restored.
    """
    root = resolve(ref)
    recover(root)
    if root.is_file():
        files = [SourceFile(root, root.name, root.stat().st_size)]
    elif root.is_dir():
        files = sorted(_walk(root, root), key=lambda f: f.name)
    else:
        raise NotFoundError(f"no model at {root}")
    if not files:
        raise NotFoundError(f"{root} holds no files")
    try:
        check_paths(f.name for f in files)
    except ValueError as error:
        raise BadInputError(f"{root}: {error}", hint="rename it: it could not be restored everywhere") from None
    return root, files


def _walk(root: Path, folder: Path) -> Iterator[SourceFile]:
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            member(folder, entry.name)
            if not path.is_file():
                raise BadInputError(f"{path} is a link to no file")
        if entry.is_file():
            yield SourceFile(path, path.relative_to(root).as_posix(), entry.stat().st_size)
        elif not entry.is_dir(follow_symlinks=False):
            raise BadInputError(f"{path} is neither a file nor a directory")
        elif entry.name not in LEFT_OUT:
            yield from _walk(root, path)
