"""Verdicts on foreign plugins: what the trial of a plugin's files found, kept until any of them changes.

One small file per plugin and environment in ``$XDG_CACHE_HOME/apt_model/verdicts``, so that commands that run at once
do not take each other's. A verdict holds for the path, size, modification time and SHA-256 of what was tried.
"""

import errno
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from apt.console.errors import AptError
from apt.plugins import dropins, index
from apt.plugins.records import PluginRecord
from apt.plugins.regular import read_regular

#: Files of a package that are part of what it declares or does; its data is not code.
_CODE: Final = (".py", ".pyc", ".toml", ".so", ".pyd")

#: So much of a plugin's code is sealed by its content.
_HASHED_FILES: Final = 512
_HASHED_BYTES: Final = 32 << 20
_DEEPEST: Final = 64
#: Seconds and bytes beyond this were not measured.
MOST: Final = 1 << 60
#: A larger file is no verdict: a trial tells at most 16 MiB, which JSON may write longer.
LARGEST: Final = 32 << 20
_KEEP_SECONDS: Final = 180 * 86400

#: Fields of what a plugin declares, by what they hold.
_TEXTS: Final = ("name", "version", "author", "description", "class")
_LISTS: Final = ("required_dependencies", "optional_dependencies", "requires", "conflicts", "hooks")
_ROWS: Final = {
    "commands": {"name", "target", "help"},
    "components": {"kind", "name", "target", "schema", "summary"},
}


@dataclass(frozen=True, slots=True)
class Seal:
    """What a plugin's files were when they were looked at.

    :param path: file or directory, or what else verdicts are kept under; see :func:`sealed_path`.
    :param mtime_ns: latest modification time.
    :param sha256: of the file; of names and digests of all files where there are several. Of what goes beyond
        :data:`_HASHED_FILES` and :data:`_HASHED_BYTES` it holds sizes and times: a plugin may lie in a package like
        torch, which nobody wants to wait for.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, beside: Iterable[Path] = ()) -> Self:
        """Seal a file or a directory, with other files and directories that it uses.

        :raises OSError: when it cannot be read.
        """
        files = [file for each in (path, *beside) for file in code_files(each)]
        digests, size, mtime = [], 0, 0
        for place, file in enumerate(files):
            status = file.stat()
            size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
            large = place >= _HASHED_FILES or size > _HASHED_BYTES
            digests.append((os.path.relpath(file, path), _looks(status) if large else _digest(file)))
        if files == [path]:
            return cls(str(path), size, mtime, digests[0][1])
        return cls(str(path), size, mtime, hashlib.sha256(json.dumps(digests).encode()).hexdigest())


def _looks(status: os.stat_result) -> str:
    return hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_files(path: Path) -> Iterator[Path]:
    """Yield the file itself, or the code in a directory, in the order of names; hidden ones left out.

    :raises OSError: when a directory cannot be read, or they are nested deeper than Python would import from.
    """
    if not path.is_dir():
        yield path
        return
    waiting = [(path, 0)]
    while waiting:
        directory, depth = waiting.pop()
        if depth > _DEEPEST:
            raise OSError(errno.ELOOP, "nested too deep", str(directory))
        for entry in sorted(directory.iterdir()):
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_dir() and not entry.is_symlink():
                waiting.append((entry, depth + 1))
            elif entry.suffix in _CODE and entry.is_file():
                yield entry


def sealed_path(record: PluginRecord) -> str:
    """Return what verdicts on a plugin are kept under: its file or directory, or that of a package and the entry point.

    A package may bring several plugins.
    """
    return record.root if record.source == "drop-in" else f"{record.root or record.location}\0{record.folder}"


def seal_of(record: PluginRecord) -> Seal:
    """Seal a plugin: a drop-in with its helpers; what only an import hook can find by what brings it, and its version.

    :raises OSError: when a file cannot be read.
    """
    if not record.root:
        return Seal(sealed_path(record), 0, 0, record.version)
    root = Path(record.root)
    beside = dropins.helpers(root) if record.source == "drop-in" else ()
    return replace(Seal.of(root, beside), path=sealed_path(record))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a trial.

    :param reason: why the plugin may not be used; ``""`` when it may.
    :param declared: what it registered, as :func:`apt.plugins.declare.describe` returns it.
    :param import_seconds: wall time of importing it; ``import_bytes``: resident memory that this took.
    :param target: what was tried, ``"module:Class"``.
    """

    seal: Seal
    reason: str = ""
    declared: dict[str, Any] = field(default_factory=dict)
    import_seconds: float = 0.0
    import_bytes: int = 0
    target: str = ""

    def holds(self, seal: Seal, target: str) -> bool:
        """Whether it is on these files, and on that class of them."""
        return self.seal == seal and target in (self.target, self.declared.get("class"))


def is_declaration(told: object) -> bool:
    """Whether what a child process told has the form of :func:`apt.plugins.declare.describe`.

    It may be the plugin that wrote it.
    """
    if not isinstance(told, dict) or set(told) != {*_TEXTS, *_LISTS, *_ROWS, "api"} or type(told["api"]) is not int:
        return False
    if not all(isinstance(told[name], list) for name in (*_LISTS, *_ROWS)):
        return False
    rows = [(row, columns) for name, columns in _ROWS.items() for row in told[name]]
    if not all(isinstance(row, dict) and set(row) == columns for row, columns in rows):
        return False
    texts = [told[name] for name in _TEXTS]
    texts += [text for each in (*(told[name] for name in _LISTS), *(row.values() for row, _ in rows)) for text in each]
    return all(isinstance(text, str) for text in texts)


def directory() -> str:
    """Return where verdicts are kept."""
    return os.path.join(index.cache_directory(), "verdicts")  # noqa: PTH118 - beside the index, which has no pathlib


def _file(path: str) -> Path:
    """Name the file of a verdict: what was tried, in which environment."""
    key = hashlib.sha256(f"{index.environment()}\0{path}".encode("utf-8", "surrogateescape")).hexdigest()
    return Path(directory(), f"{key[:32]}.json")


def find(path: str) -> Verdict | None:
    """Return the last verdict on a path, whether or not it still holds; ``None`` without a readable one."""
    if os.environ.get("APT_NO_CACHE"):
        return None
    try:
        checksum, _, text = read_regular(_file(path), LARGEST).partition(b"\n")
        if int(checksum, 16) != zlib.crc32(text):
            return None
        data = json.loads(text)
        verdict = Verdict(**{**data, "seal": Seal(**data["seal"])})
    except (AptError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return verdict if verdict.seal.path == path and _is_verdict(verdict) else None


def _is_verdict(read: Verdict) -> bool:
    """Whether every field that was read is of its type: whoever can write a file can write its checksum."""
    seal, measured = read.seal, (read.import_seconds, read.import_bytes)
    texts = (seal.path, seal.sha256, read.reason, read.target)
    numbers = (seal.size_bytes, seal.mtime_ns, read.import_bytes)
    if not all(isinstance(t, str) for t in texts) or not all(type(n) is int for n in numbers):
        return False
    if type(read.import_seconds) not in (int, float) or not all(0 <= m < MOST for m in measured):
        return False
    return is_declaration(read.declared) or (bool(read.reason) and read.declared == {})


def keep(verdict: Verdict) -> None:
    """Write a verdict; a cache that cannot be written is done without."""
    if os.environ.get("APT_NO_CACHE"):
        return
    path = _file(verdict.seal.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        text = json.dumps(asdict(verdict)).encode()
        index.replace_file(str(path), f"{zlib.crc32(text):08x}\n".encode() + text)
    except OSError:
        return


def _sweep(directory: Path) -> None:
    """Remove verdicts that are so old that what they were on is long gone, or may well be tried once more."""
    for file in directory.iterdir():
        if file.stat().st_mtime < time.time() - _KEEP_SECONDS:
            file.unlink()


def forget(path: str) -> None:
    """Remove the verdict on a path, so that the plugin is tried again at its next use, where the cache can be written.

    One that stays holds no longer than the files that it is about.
    """
    with suppress(OSError):
        _file(path).unlink(missing_ok=True)
