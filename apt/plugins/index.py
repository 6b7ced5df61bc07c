"""The cached index of what is installed: what the fast path reads.

One file per environment and home in ``$XDG_CACHE_HOME/apt_model``. It holds the texts of ``--help`` and ``plugin
list`` ready to print, the records of plugins, commands and components as JSON, and a stamp of every file and
directory that they were derived from. A reader compares the stamps (one ``stat`` each) and takes the file only when
all agree; whoever finds it stale, damaged or absent builds it anew and replaces it atomically, without a word.

This module is imported on every start: it uses nothing beyond ``os``, ``sys`` and ``zlib``.
"""

import os
import sys
import zlib

from apt_model import __version__

#: Change with the layout of the file or of the records in it.
FORMAT = "3"
_MAGIC = b"apt-index " + FORMAT.encode() + b" "
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


def stamp(path: str) -> str:
    """Return what changes when a file or directory changes; ``"-"`` when there is none.

    A path that ends in ``/`` stands for the names in that directory, bytecode caches left out: Python writes those
    by itself.
    """
    try:
        if path.endswith("/"):
            return " ".join(sorted(n for n in os.listdir(path) if n != "__pycache__" and not n.startswith(".")))
        s = os.stat(path)
    except OSError:
        return "-"
    return f"{s.st_mtime_ns}.{s.st_ctime_ns}.{s.st_size}.{s.st_ino}.{s.st_mode}.{s.st_uid}"


def _identity() -> str:
    return "\0".join([__version__, str(sys.hexversion), sys.prefix, ROOT, home(), *search_path()])


def _file() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "apt_model", f"index-{zlib.crc32(_encode(_identity())):08x}")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def ready_text(section: str) -> str | None:
    """Return a section of the index; ``None`` when it is not current.

    The sections are ``help`` and ``list``, both also with the ending ``.zh-CN``, ``list-json`` and ``data``.
    """
    return _read(section, current=True)


def stale_text(section: str) -> str | None:
    """Return a section of the index even when something has changed since; for what carries its own stamps."""
    return _read(section, current=False)


def _read(section: str, *, current: bool) -> str | None:
    if os.environ.get("APT_NO_CACHE"):
        return None
    try:
        with open(_file(), "rb") as file:
            return _section(file.read(), section, current)
    except (OSError, ValueError):
        return None


def _section(data: bytes, wanted: str, current: bool) -> str | None:
    """Take a section out of the file's bytes.

    :raises ValueError: when they are not an index.
    """
    first, _, body = data.partition(b"\n")
    if not first.startswith(_MAGIC) or int(first[len(_MAGIC) :], 16) != zlib.crc32(body):
        return None
    head, _, rest = body.partition(b"\n")
    sections = {}
    for field in head.decode().split():
        name, _, length = field.partition("=")
        sections[name], rest = rest[: int(length)], rest[int(length) :]
    if wanted not in sections or _decode(sections["identity"]) != _identity():
        return None
    pairs = _decode(sections["stamps"]).split("\0")
    if current and any(stamp(pairs[i]) != pairs[i + 1] for i in range(0, len(pairs) - 1, 2)):
        return None
    return _decode(sections[wanted])


def write(stamps: dict[str, str], sections: dict[str, str]) -> None:
    """Write the index; a cache that cannot be written is done without."""
    if os.environ.get("APT_NO_CACHE"):
        return
    flat = "\0".join(part for pair in stamps.items() for part in pair)
    encoded = {name: _encode(text) for name, text in {"identity": _identity(), "stamps": flat, **sections}.items()}
    head = " ".join(f"{name}={len(text)}" for name, text in encoded.items())
    body = head.encode() + b"\n" + b"".join(encoded.values())
    path = _file()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _sweep(os.path.dirname(path))
        replace_file(path, _MAGIC + f"{zlib.crc32(body):08x}\n".encode() + body)
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
