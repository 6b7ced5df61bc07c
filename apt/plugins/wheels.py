"""Looking at a wheel before it is installed: what plugins it would bring. Nothing of it is executed."""

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from apt.console.errors import BadInputError, explain
from apt.plugins.discovery import GROUP, Found, of_distribution
from apt.plugins.distributions import digest, encoded, name_of

#: Bounds of what is taken out of a wheel to be looked at: a larger one is not judged, and so not installed.
_MOST_FILES: Final = 50_000
_LARGEST_FILE: Final = 8 << 20
_LARGEST_TOTAL: Final = 64 << 20
_LONGEST_NAME_BYTES: Final = 255
_INFORMATION: Final = ("METADATA", "WHEEL", "RECORD", "entry_points.txt")


@dataclass(frozen=True, slots=True)
class Wheel:
    """What a wheel says of itself.

    :param requires: its requirements, as metadata writes them.
    :param plugins: as they would be found if it were installed; their files are gone.
    :param members: its files as it names them; ``information`` is the directory of its metadata among them.
    :param scripts: commands that its installation would make.
    """

    name: str
    version: str
    requires: tuple[str, ...]
    plugins: tuple[Found, ...]
    members: tuple[PurePosixPath, ...]
    information: str
    scripts: tuple[str, ...]


def look(file: Path) -> Wheel:
    """Read a wheel's metadata, entry points, manifests and the source of its plugins.

    :raises BadInputError: when it is no wheel, is too large, or names files outside its directory.
    """
    with _opened(file) as archive, TemporaryDirectory() as directory:
        members = _members(file, archive)
        information = _information(file, members)
        _extract(file, archive, members, Path(directory), lambda p: p.parent == information and p.name in _INFORMATION)
        dist = PathDistribution(Path(directory, information))
        if not dist.metadata["Name"] or not dist.metadata["Version"]:
            raise BadInputError(f"{file.name} does not say its name and version")
        if not name_of(dist):
            raise BadInputError(f"{file.name} has the metadata of {dist.name} in {information}")
        requires = _requirements(file, dist)
        try:
            points = list(dist.entry_points.select(group=GROUP))
            tops = {p.module.partition(".")[0] for p in points}
        except (ValueError, AttributeError, TypeError) as error:
            raise BadInputError(f"{file.name}: entry_points.txt cannot be read: {error}") from None
        plugins: tuple[Found, ...] = ()
        if points:
            _extract(file, archive, members, Path(directory), lambda p: _declares(p, tops))
            plugins = tuple(of_distribution(dist, [directory]))
        scripts = tuple(p.name for p in dist.entry_points if p.group in ("console_scripts", "gui_scripts"))
        return Wheel(dist.name, dist.version, requires, plugins, tuple(members), information.name, scripts)


def _requirements(file: Path, dist: Distribution) -> tuple[str, ...]:
    from packaging.requirements import InvalidRequirement, Requirement

    wanted = tuple(dist.requires or ())
    for text in wanted:
        try:
            Requirement(text)
        except InvalidRequirement:
            raise BadInputError(f"{file.name} requires {text!r}, which is no requirement") from None
    return wanted


def recorded(file: Path) -> dict[str, str]:
    """Return the hash of every file of a wheel by its name, as RECORD writes hashes; they are computed, not read.

    :raises BadInputError: when it is no wheel or a file of it is damaged.
    """
    found = {}
    with _opened(file) as archive:
        for path, info in _members(file, archive).items():
            hashed = hashlib.sha256()
            with archive.open(info) as stream:
                while block := stream.read(1 << 20):
                    hashed.update(block)
            found[str(path)] = encoded(hashed)
    return found


def is_installed(wheel: Path, dist: Distribution) -> bool:
    """Whether the files of a wheel are those of a distribution, on the disk and now."""
    for name, noted in recorded(wheel).items():
        parts = name.split("/")
        if name.endswith(".dist-info/RECORD") or parts[0].endswith(".data"):
            continue
        path = Path(str(dist.locate_file(name)))
        if not path.is_file() or digest(path) != noted:
            return False
    return True


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    if not file.is_file() and file.exists():  # reading a pipe would wait for whoever writes into it
        raise BadInputError(f"{file} is no wheel: it is not a file")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise BadInputError(f"{file.name} is no sound wheel: {error}") from None
    except OSError as error:
        raise explain(error) or BadInputError(f"{file.name} cannot be read: {error}") from None


def _members(file: Path, archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of a wheel by where they are installed, each once and inside its directory."""
    infos = [i for i in archive.infolist() if not i.is_dir()]
    if len(infos) > _MOST_FILES:
        raise BadInputError(f"{file.name} holds {len(infos)} files; more than {_MOST_FILES} are not looked at")
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.orig_filename or ":" in info.filename:
            raise BadInputError(f"{file.name} names a file outside its directory: {info.filename!r}")
        if not path.parts or any(len(p.encode("utf-8", "replace")) > _LONGEST_NAME_BYTES for p in path.parts):
            raise BadInputError(f"{file.name} names a file as no system can: {info.filename[:60]!r}")
        if path in found:
            raise BadInputError(f"{file.name} holds {info.filename!r} twice")
        found[path] = info
    above = {parent for path in found for parent in path.parents}
    if both := next((p for p in found if p in above), None):
        raise BadInputError(f"{file.name} holds {str(both)!r} as a file and as a directory")
    return found


def _information(file: Path, members: dict[PurePosixPath, zipfile.ZipInfo]) -> PurePosixPath:
    found = {
        p.parent for p in members if len(p.parts) == 2 and p.parent.suffix == ".dist-info" and p.name == "METADATA"
    }
    if len(found) != 1:
        raise BadInputError(f"{file.name} is no wheel: it has {len(found)} .dist-info/METADATA")
    return found.pop()


def _declares(path: PurePosixPath, tops: set[str]) -> bool:
    """Whether a file may say what a plugin of these top-level modules is."""
    parts = _installed(path).parts
    return bool(parts) and path.suffix in (".py", ".toml") and PurePosixPath(parts[0]).stem in tops


def _installed(path: PurePosixPath) -> PurePosixPath:
    """Return where below site-packages a file goes: those of ``NAME.data/purelib`` lie there, too."""
    parts = path.parts
    if len(parts) > 2 and parts[0].endswith(".data") and parts[1] in ("purelib", "platlib"):
        return PurePosixPath(*parts[2:])
    return path


def _extract(
    file: Path,
    archive: zipfile.ZipFile,
    members: dict[PurePosixPath, zipfile.ZipInfo],
    directory: Path,
    wanted: Callable[[PurePosixPath], bool],
) -> None:
    chosen = {path: info for path, info in members.items() if wanted(path)}
    large = next((i for i in chosen.values() if i.file_size > _LARGEST_FILE), None)
    if large is not None or sum(i.file_size for i in chosen.values()) > _LARGEST_TOTAL:
        raise BadInputError(f"{file.name} is too large to be looked at" + (f": {large.filename}" if large else ""))
    for path, info in chosen.items():
        target = directory / _installed(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out)  # at most file_size bytes: zipfile stops there
