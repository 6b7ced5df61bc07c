"""An installed distribution as the wheel it came from: the same files make the same bytes, whoever packs them.

Files are taken from the distribution's RECORD and held against its hashes. Members are sorted, stored (the output of
compressors differs by version) and dated 1980-01-01; what an installer writes is left out. Format: PEP 427.
"""

import hashlib
import re
import stat
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath
from typing import Final

from apt.console.errors import BadInputError, UnsupportedError
from apt.plugins.distributions import altered, encoded, info_directory, is_by_installer, origin, recorded

_DATE: Final = (1980, 1, 1, 0, 0, 0)
_LARGEST: Final = 512 << 20


def repack(dist: Distribution, directory: Path) -> Path:
    """Write a distribution as a wheel into a directory and return its file.

    :raises UnsupportedError: for an editable installation, which has no files of its own.
    :raises BadInputError: when its files are not those that were installed, or are too large.
    """
    information = info_directory(dist)
    if information is None or origin(dist) == "editable":
        raise UnsupportedError(
            f"{dist.name} is an editable installation, which cannot be restored elsewhere",
            hint="install it from a wheel: pip wheel --no-deps DIRECTORY, then apt_model plugin install THE.whl",
        )
    if differing := altered(dist):
        raise BadInputError(
            f"{dist.name} {dist.version}: {len(differing)} of its files are not those that were installed, "
            f"{differing[0]} for one",
            hint="install it anew",
        )
    files = [Path(str(dist.locate_file(name))) for name, _ in recorded(dist)]
    if sum(f.stat().st_size for f in files if f.is_file()) > _LARGEST:
        raise BadInputError(f"{dist.name} holds more than 512 MiB and is not packed", hint="publish it on an index")
    members = sorted(_members(dist, information.name), key=lambda m: (m[0].startswith(information.name), m[0]))
    target = directory / _file_name(dist)
    rows = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data, executable in members:
            archive.writestr(_entry(name, executable=executable), data)
            rows.append(f"{_quoted(name)},sha256={encoded(hashlib.sha256(data))},{len(data)}")
        record = f"{information.name}/RECORD"
        archive.writestr(_entry(record, executable=False), "".join(f"{r}\n" for r in (*rows, f"{record},,")))
    return target


def _entry(name: str, *, executable: bool) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3  # Unix, on every system
    info.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    return info


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if re.search(r'[",\n]', name) else name


def _members(dist: Distribution, information: str) -> Iterator[tuple[str, bytes, bool]]:
    """Yield name, content and whether it is executable of every file that the wheel holds."""
    scripts = {p.name for p in dist.entry_points if p.group in ("console_scripts", "gui_scripts")}
    data = f"{information.removesuffix('.dist-info')}.data"
    for name, _ in recorded(dist):
        path = PurePosixPath(name)
        if path.suffix == ".pyc" or is_by_installer(path):
            continue
        file = Path(str(dist.locate_file(name)))
        if ".." not in path.parts and not path.is_absolute():
            yield name, file.read_bytes(), bool(file.stat().st_mode & stat.S_IXUSR)
            continue
        place = _below_prefix(dist, file)
        if path.parent.name in ("bin", "Scripts"):
            if path.stem not in scripts and path.name not in scripts:  # those the installer writes
                yield f"{data}/scripts/{path.name}", _portable(file.read_bytes()), True
        else:
            yield f"{data}/data/{place}", file.read_bytes(), False


def _below_prefix(dist: Distribution, file: Path) -> str:
    """Return where below the environment a file lies.

    :raises UnsupportedError: when it lies elsewhere: it is none of the distribution's.
    """
    prefix = Path(sys.prefix).resolve()
    if not file.resolve().is_relative_to(prefix):
        raise UnsupportedError(f"{dist.name} has a file outside its environment: {file}")
    return file.resolve().relative_to(prefix).as_posix()


def _portable(script: bytes) -> bytes:
    """Return a script whose first line names this Python as a wheel has it."""
    first, newline, rest = script.partition(b"\n")
    return b"#!python" + newline + rest if first.startswith(b"#!") and b"python" in first else script


def _file_name(dist: Distribution) -> str:
    """Return the wheel's name, with the tags that its WHEEL file lists.

    :raises BadInputError: when it lists none.
    """
    tags = re.findall(r"^Tag: *([\w.]+)-([\w.]+)-([\w.]+)\s*$", dist.read_text("WHEEL") or "", re.MULTILINE)
    if not tags:
        raise BadInputError(f"{dist.name} does not say for which Python it was built (WHEEL)")
    compressed = "-".join(".".join(sorted({tag[i] for tag in tags})) for i in range(3))
    name = re.sub(r"[-_.]+", "_", dist.name)
    version = dist.version.replace("-", "_")
    if not re.fullmatch(r"\w+", name) or not re.fullmatch(r"[\w.+!]+", version):
        raise BadInputError(f"bad name or version of a distribution: {dist.name!r} {dist.version!r}")
    return f"{name}-{version}-{compressed}.whl"
