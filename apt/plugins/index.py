"""The cached index of what is installed: what the fast path reads.

One file per environment, home and language in ``$XDG_CACHE_HOME/apt_model``. It holds the texts of ``--help`` and
``plugin list`` ready to print, the records of plugins, commands and components as JSON, and the seal of every file and
directory that they were derived from. A reader takes one ``stat`` of each and reads its section only when the seal
agrees; whoever finds the index stale, damaged or absent builds it anew and replaces it atomically, without a word.
Sections have a checksum each, so that nobody reads what he does not need.

This module is imported on every start: it uses nothing beyond ``os``, ``sys`` and ``zlib``.
"""

import os
import sys
import zlib

from apt import language
from apt_model import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would cost more than all of this file
    from io import FileIO

#: Change with the layout of the file or of the records in it.
FORMAT = "3"
_MAGIC = b"apt-index " + FORMAT.encode() + b" "
#: Room for the table of sections at the beginning of the file.
_HEAD_BYTES = 1024
_KEEP_SECONDS = 30 * 86400

#: The directory that holds the packages ``apt`` and ``apt_model``.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def home() -> str:
    """Return the user's directory of models and plugins: ``APT_HOME``, else ``~/.apt_model``."""
    return os.path.abspath(os.environ.get("APT_HOME") or os.path.expanduser("~/.apt_model"))


def plugin_directory() -> str:
    """Return the directory of the user's drop-in plugins."""
    return os.path.join(home(), "plugins")


def state_path() -> str:
    """Return the file that says which plugins are disabled."""
    return os.path.join(home(), "plugins.json")


def search_path() -> list[str]:
    """Return where installed packages are looked for.

    That is ``sys.path`` without the entry that Python puts first (the current directory or the script's: what lies
    there was not installed) and without our own source tree, whose directory changes with every output in it.
    """
    entries = sys.path[0 if sys.flags.safe_path else 1 :]
    own = ROOT if os.path.basename(ROOT) not in ("site-packages", "dist-packages") else None
    return [entry for entry in entries if entry and entry != own]


def stamp(path: str) -> int:
    """Return what changes when a file or directory changes; 0 when there is none.

    The change time of an inode covers its content, size, mode and owner; its number, a file that was put in its place.
    A path that ends in ``/`` stands for the names in that directory, bytecode caches left out: Python writes those by
    itself; one that ends in ``/.`` for who may write there. Tuples of numbers hash alike in every process of one
    Python.
    """
    try:
        if path.endswith("/."):
            s = os.stat(path)
            return hash((s.st_mode, s.st_uid, s.st_gid))
        if path.endswith("/"):
            names = sorted(n for n in os.listdir(path) if n != "__pycache__" and not n.startswith("."))
            return zlib.crc32(_encode("/".join(names)))
        s = os.stat(path)
    except OSError:
        return 0
    return hash((s.st_ctime_ns, s.st_ino))


def _seal(groups: str) -> int:
    """Return one number for the stamps of all paths: that of :func:`stamp`, in loops that a start can afford.

    :param groups: the groups of :func:`_sealed`.
    :raises OSError: when the directory of a group is not there.
    """
    stat, sealed = os.stat, 0
    special, *others = groups.split("\1")
    for path in special.split("\0"):
        sealed = hash((sealed, stamp(path)))
    for group in others:
        directory, *paths = group.split("\0")
        base = os.open(directory, os.O_RDONLY)
        for path in paths:
            try:
                s = stat(path, dir_fd=base)
            except OSError:
                sealed = hash((sealed, 0))
            else:
                sealed = hash((sealed, hash((s.st_ctime_ns, s.st_ino))))
        os.close(base)
    return sealed


def _sealed(stamps: dict[str, int]) -> tuple[int, str]:
    """Return the seal of stamps that were taken before, and their paths in groups.

    The first group is of absolute paths; each other one begins with a directory, to which its paths are relative:
    looking them up from there saves a tenth of a start with hundreds of plugins.
    """
    groups: dict[str, list[str]] = {"": []}
    bases = [f"{entry.rstrip('/')}/" for entry in (plugin_directory(), *search_path())]
    for path in stamps:
        base = next((b for b in bases if path.startswith(b)), "") if path[-1] not in "/." else ""
        groups.setdefault(base, []).append(path)
    sealed = 0
    for paths in groups.values():
        for path in paths:
            sealed = hash((sealed, stamps[path]))
    texts = ["\0".join([base, *(p[len(base) :] for p in paths)]) for base, paths in groups.items()]
    return sealed, "\1".join([texts[0][1:], *texts[1:]])


def environment() -> str:
    """Return what tells one installation of the package and its Python from another."""
    return "\0".join([__version__, str(sys.hexversion), sys.prefix, ROOT])


def _identity() -> str:
    return "\0".join([environment(), language(), home(), *search_path()])


def _file() -> str:
    return os.path.join(cache_directory(), f"index-{zlib.crc32(_encode(_identity())):08x}")


def cache_directory() -> str:
    """Return where the index and the verdicts on plugins are kept."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "apt_model")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def ready_text(section: str) -> str | None:
    """Return a section of the index (``help``, ``list``, ``list-json``, ``data``); ``None`` when it is not current."""
    data = ready_bytes(section)
    return None if data is None else _decode(data)


def ready_bytes(wanted: str) -> bytes | None:
    """Return a section as it is in the file, in UTF-8: for what is only handed on."""
    if os.environ.get("APT_NO_CACHE"):
        return None
    try:
        with open(_file(), "rb", buffering=0, opener=_open_at_once) as file:
            head = file.read(_HEAD_BYTES) or b""
            table = _table(head)
            if table is None or wanted not in table or _section(file, table, "identity") != _encode(_identity()):
                return None
            sealed, _, groups = _decode(_section(file, table, "stamps")).partition("\1")
            if sealed != str(_seal(groups)):
                return None
            return _section(file, table, wanted)
    except (OSError, ValueError):
        return None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting: opening a pipe would wait for whoever writes into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _table(head: bytes) -> dict[str, tuple[int, int, int]] | None:
    """Read the first line: offset, length and checksum of each section by its name; ``None`` when it is no index."""
    line, newline, _ = head.partition(b"\n")
    magic, text, checksum = line[: len(_MAGIC)], line[len(_MAGIC) : -9], line[-8:]
    if not newline or magic != _MAGIC or f"{zlib.crc32(text):08x}".encode() != checksum:
        return None
    table = {}
    for field in text.decode().split():
        name, offset, length, sum_ = field.split("=")
        table[name] = int(offset), int(length), int(sum_)
    return table


def _section(file: "FileIO", table: dict[str, tuple[int, int, int]], name: str) -> bytes:
    """Read one section.

    :raises ValueError: when its bytes are not those that were written.
    """
    offset, length, checksum = table[name]
    file.seek(_HEAD_BYTES + offset)
    data = file.read(length)
    if len(data) != length or zlib.adler32(data) != checksum:
        raise ValueError(name)
    return data


def write(stamps: dict[str, int], sections: dict[str, str]) -> None:
    """Write the index; a cache that cannot be written is done without."""
    if os.environ.get("APT_NO_CACHE"):
        return
    texts = {"identity": _identity(), "stamps": "\1".join(map(str, _sealed(stamps))), **sections}
    encoded = {name: _encode(text) for name, text in texts.items()}
    fields, offset = [], 0
    for name, text in encoded.items():
        fields.append(f"{name}={offset}={len(text)}={zlib.adler32(text)}")
        offset += len(text)
    table = " ".join(fields).encode()
    head = _MAGIC + table + b" " + f"{zlib.crc32(table):08x}".encode() + b"\n"
    path = _file()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _sweep(os.path.dirname(path))
        replace_file(path, head.ljust(_HEAD_BYTES) + b"".join(encoded.values()))
    except OSError:
        return


def replace_file(path: str, data: bytes) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part."""
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.unlink(aside)
        raise


def _sweep(directory: str) -> None:
    """Remove indexes of environments that have not been used for a month."""
    import time

    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if name.startswith("index-") and os.stat(path).st_mtime < time.time() - _KEEP_SECONDS:
            os.unlink(path)
