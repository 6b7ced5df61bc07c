"""Where a store is: a ``file://`` URL or a path."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from apt.console.errors import UnsupportedError, UsageError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_MOUNT: Final = "mount it as a folder and give file:///that/folder"


def store_root(url: str) -> Path:
    """Return the directory of a store.

    :raises UsageError: for an empty URL or one with a host.
    :raises UnsupportedError: for a kind of store that this version does not cover.
    """
    match = _SCHEME.match(url)
    if match is None:
        if not url:
            raise UsageError("no store was given", hint="file:///path/to/store")
        return Path(url).expanduser()
    if match[1].lower() != "file":
        raise UnsupportedError(f"this version keeps backups in folders only, not at {match[1]}://", hint=_MOUNT)
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path:
        raise UsageError(f"{url!r} names no folder of this machine", hint="three slashes: file:///path/to/store")
    return Path(unquote(parts.path))
