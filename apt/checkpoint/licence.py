"""The licence that a model's own files state."""

import re
from pathlib import Path
from typing import Final

_LICENCE_LINE: Final = re.compile(r"^license(?:_name)?:\s*[\"']?([^\"'\n]+?)[\"']?\s*$", re.MULTILINE)
_CARD_BYTES: Final = 80_000
_FILE_BYTES: Final = 4000


def licence_of(directory: Path) -> str | None:
    """Return the licence that the model card's front matter names, else the first line of the licence file."""
    front = _head(directory / "README.md", _CARD_BYTES).split("\n---", 1)[0]
    if front.startswith("---") and (match := _LICENCE_LINE.search(front)):
        return match.group(1)
    for name in ("LICENSE", "LICENSE.txt"):
        if text := _head(directory / name, _FILE_BYTES):
            return next((line.strip() for line in text.splitlines() if line.strip()), None)
    return None


def _head(path: Path, size: int) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return stream.read(size).decode("utf-8", errors="replace")
