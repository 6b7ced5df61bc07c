"""The recipes that are shipped with the package."""

from pathlib import Path

from apt.console.errors import NotFoundError
from apt.registry import did_you_mean


def shipped() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    return {p.stem: p for p in sorted(Path(__file__).parent.glob("*.yaml"))}


def find(ref: str) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one.

    :raises NotFoundError: with the nearest shipped name.
    """
    path = Path(ref).expanduser()
    if path.is_file():
        return path
    known = shipped()
    if ref in known:
        return known[ref]
    raise NotFoundError(f"no recipe {ref!r}: neither a file nor shipped", hint=did_you_mean(ref, known))
