"""The text that ``tiny`` is made of: the Python standard library, split by module name.

A module belongs to the held-out side when the SHA-256 of its dotted name says so, therefore the split is
the same for every Python version and no module is ever on both sides. The held-out text itself is frozen in
``tiny/heldout.txt``, because the library changes between Python versions and a figure must not.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

Split = Literal["train", "heldout"]

#: Held-out share of the modules, in 256ths.
HELDOUT_256THS: Final = 8

#: Folders that hold no text worth learning: test suites (assertions over literals) and code tables.
SKIPPED_PARTS: Final = frozenset(
    {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
)


def split_of(module: str) -> Split:
    """Return the side of the split that a dotted module name falls on."""
    digest = hashlib.sha256(module.encode("utf-8")).digest()
    return "heldout" if digest[0] < HELDOUT_256THS else "train"


def stdlib_root() -> Path:
    """Return the directory of the running interpreter's standard library."""
    return Path(os.__file__).parent


def module_names(root: Path) -> list[tuple[str, Path]]:
    """List ``(dotted name, file)`` of the library's modules, sorted by name."""
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if SKIPPED_PARTS.isdisjoint(relative.parts):
            parts = list(relative.with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            if parts:
                found.append((".".join(parts), path))
    return sorted(found)


def stdlib_texts(split: Split, root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield ``(dotted name, source text)`` of one side of the split, in a fixed pseudo-random order.

    The order is that of the names' digests: any prefix is then a fair sample of the library, where
    the alphabetical order would begin with ``abc``, ``aifc`` and ``antigravity``. Modules that are not
    UTF-8 are left out.
    """
    names = module_names(root or stdlib_root())
    for name, path in sorted(names, key=lambda item: hashlib.sha256(item[0].encode()).hexdigest()):
        if split_of(name) != split:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield name, text
