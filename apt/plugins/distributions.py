"""Installed distributions: where they came from, what they need, and whether their files are still the same."""

import base64
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal

from apt.console.errors import NotFoundError
from apt.plugins import index
from apt.plugins.dependencies import HELD

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: The distribution of this package.
OWN: Final = "apt-model"
#: Files of an installation that the installer writes: they are no part of what was installed.
WRITTEN_BY_INSTALLER: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")

#: ``index``: a package index, or nobody knows; ``local``: a file, a directory or an address; ``editable``: a source
#: tree that is used in place.
Origin = Literal["index", "local", "editable"]


def canonical(name: str) -> str:
    """Return a distribution's name as every installer writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find(name: str) -> Distribution | None:
    """Return the installed distribution of that name; the first on the search path counts."""
    wanted = canonical(name)
    for dist in importlib.metadata.distributions(name=name, path=index.search_path()):
        if canonical(name_of(dist)) == wanted:
            return dist
    return None


def name_of(dist: Distribution) -> str:
    """Return the name of a distribution on which its metadata and the name of its directory agree, else ``""``.

    pip finds a distribution by the name of its directory: one that calls itself otherwise would have it uninstall or
    install another one.
    """
    try:
        name = str(dist.metadata["Name"] or "")
    except Exception:  # the library raises whatever its parsers do
        return ""
    path = getattr(dist, "_path", None)  # the public API names no path
    noted = Path(str(path)) if path is not None else Path()
    if noted.suffix in (".dist-info", ".egg-info") and canonical(noted.stem.partition("-")[0]) != canonical(name):
        return ""
    return name


def info_directory(dist: Distribution) -> Path | None:
    """Return a distribution's ``.dist-info`` directory; ``None`` for one that has no such directory."""
    found = getattr(dist, "_path", None)  # the public API names no path
    path = Path(str(found)) if found is not None else None
    return path if path is not None and path.suffix == ".dist-info" and path.is_dir() else None


def origin(dist: Distribution) -> Origin:
    """Return where a distribution came from, as its installer noted (PEP 610)."""
    if info_directory(dist) is None:
        return "editable"  # an egg-link or a source tree on the path
    try:
        noted = json.loads(dist.read_text("direct_url.json") or "{}")
    except (ValueError, RecursionError):
        return "local"
    if not isinstance(noted, dict) or not noted:
        return "index"
    directory = noted.get("dir_info")
    return "editable" if isinstance(directory, dict) and directory.get("editable") else "local"


def address(dist: Distribution) -> str:
    """Return the file, directory or address that a distribution was installed from, as its installer noted."""
    from urllib.parse import unquote, urlsplit

    try:
        url = str(json.loads(dist.read_text("direct_url.json") or "{}").get("url", ""))
    except (ValueError, AttributeError, RecursionError):
        return ""
    return unquote(urlsplit(url).path) if url.startswith("file:") else url


def note_origin(dist: Distribution, came_from: dict[str, Any]) -> None:
    """Note where a distribution came from (PEP 610), in place of what its installer noted; nothing for an index.

    RECORD, which lists the note, is kept in step. What cannot be written stays as it is.
    """
    information, name = info_directory(dist), "direct_url.json"
    if information is None or not (information / name).is_file():
        return
    note = json.dumps(came_from).encode()
    own = f"{information.name}/{name}"
    row = [f"{own},sha256={encoded(hashlib.sha256(note))},{len(note)}"] if came_from else []
    lines = (dist.read_text("RECORD") or "").splitlines()
    others = [line for line in lines if not line.startswith(f"{own},")]
    with suppress(OSError):
        index.replace_file(str(information / "RECORD"), "".join(f"{x}\n" for x in (*others, *row)).encode())
        if came_from:
            index.replace_file(str(information / name), note)
        else:
            (information / name).unlink()


def needs(dist: Distribution, extras: Iterable[str] = ()) -> Iterator["Requirement"]:
    """Yield what a distribution requires in this environment; what cannot be read is left out."""
    from packaging.requirements import InvalidRequirement, Requirement

    wanted = ("", *extras)
    for text in dist.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in wanted):
            yield requirement


def closure(requirements: Iterable["Requirement"]) -> dict[str, Distribution]:
    """Return the installed distributions that requirements lead to, by canonical name; absent ones are left out."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        key = canonical(requirement.name), tuple(sorted(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        dist = found.get(key[0]) or find(requirement.name)
        if dist is not None:
            found[key[0]] = dist
            waiting += needs(dist, requirement.extras)
    return found


@cache
def core() -> frozenset[str]:
    """Return the canonical names of what belongs to apt_model's own installation; no plugin set holds these."""
    from packaging.requirements import Requirement

    own = [Requirement(OWN), *map(Requirement, HELD)]
    return frozenset({OWN, "pip", "setuptools", "wheel", *HELD, *closure(own)})


def recorded(dist: Distribution) -> list[tuple[str, str]]:
    """Return the files of a distribution's RECORD with their hashes (``sha256=…``; ``""`` where none is noted).

    :raises NotFoundError: when there is no RECORD.
    """
    import csv

    text = dist.read_text("RECORD")
    if text is None:
        raise NotFoundError(f"{dist.name} has no list of its files (RECORD)", hint="install it anew from a wheel")
    return [(row[0], row[1] if len(row) > 1 else "") for row in csv.reader(text.splitlines()) if row]


def altered(dist: Distribution) -> list[str]:
    """Return the files that are gone or differ from what was installed, by their RECORD.

    :raises NotFoundError: when there is no RECORD.
    """
    found = []
    for name, noted in recorded(dist):
        algorithm, _, value = noted.partition("=")
        path = Path(str(dist.locate_file(name)))
        if name.endswith(".pyc") or is_by_installer(PurePosixPath(name)):
            continue
        if not path.is_file() or (algorithm == "sha256" and digest(path) != value.rstrip("=")):
            found.append(name)
    return found


def is_by_installer(path: PurePosixPath) -> bool:
    """Whether a file of a RECORD was written by the installer."""
    return path.parent.suffix == ".dist-info" and path.name in WRITTEN_BY_INSTALLER


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as RECORD writes it: URL-safe base64 without padding."""
    with path.open("rb") as file:
        return encoded(hashlib.file_digest(file, "sha256"))


def encoded(hashed: Any) -> str:
    """Return a finished hash as RECORD writes it."""
    return base64.urlsafe_b64encode(hashed.digest()).rstrip(b"=").decode()


def hexadecimal(path: Path) -> str:
    """Return the SHA-256 of a file as pip writes it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
