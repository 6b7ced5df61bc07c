"""Finding plugins without importing them: built-in folders, entry points, files of the user's plugin directory.

What a plugin says of itself in literals (class attributes, ``add_command("name", …)``) is read from its source, so that
one that cannot be imported is still listed under its name.
"""

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apt.plugins import index
from apt.plugins.declare import DROPINS

GROUP: Final = "apt_model.plugins"
_BUILTIN_SOURCES: Final = {"builtin": "built-in", "optional": "built-in, optional"}


@dataclass(slots=True)
class Found:
    """A plugin before it is asked.

    :param target: ``"module:Class"`` or ``"module:"``.
    :param file: its source file, where there is one.
    :param facts: what is known without importing: metadata by field name.
    :param commands: names of commands and their help, as far as they are literals.
    """

    source: str
    folder: str
    target: str
    file: Path | None
    location: str
    facts: dict[str, Any] = field(default_factory=dict)
    commands: list[dict[str, str]] = field(default_factory=list)

    @property
    def foreign(self) -> bool:
        """Whether others than this package wrote it."""
        return not self.source.startswith("built-in")


def find(stamps: dict[str, str]) -> list[Found]:
    """Return the plugins of all sources, in the order of precedence; ``stamps`` takes up what was looked at."""
    return [*_builtin(stamps), *_entry_points(stamps), *_dropins(stamps)]


def _watch(stamps: dict[str, str], path: str | Path) -> None:
    stamps[str(path)] = index.stamp(str(path))


def _builtin(stamps: dict[str, str]) -> Iterator[Found]:
    here = Path(__file__).parent
    for group, source in _BUILTIN_SOURCES.items():
        _watch(stamps, f"{here / group}/")
        for folder in sorted((here / group).iterdir()):
            file = folder / "__init__.py"
            if folder.is_dir() and not folder.name.startswith(("_", ".")):
                _watch(stamps, file)
                if file.is_file():
                    target = f"apt.plugins.{group}.{folder.name}:"
                    yield _read(Found(source, folder.name, target, file, str(folder)))


def _dropins(stamps: dict[str, str]) -> Iterator[Found]:
    directory = Path(index.plugin_directory())
    _watch(stamps, f"{directory}/")
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return
    for entry in entries:
        file = entry / "__init__.py" if entry.is_dir() else entry
        stem = entry.name if entry.is_dir() else entry.stem
        if entry.name.startswith(("_", ".")) or not re.fullmatch(r"[\w-]+", stem):
            continue
        if file.suffix == ".py":
            _watch(stamps, file)
            if file.is_file():
                yield _read(Found("drop-in", stem, f"{DROPINS}.{stem}:", file, str(file)))


def _entry_points(stamps: dict[str, str]) -> Iterator[Found]:
    seen: set[str] = set()
    for entry in index.search_path():
        _watch(stamps, entry)
    for dist in importlib.metadata.distributions(path=index.search_path()):
        text = dist.read_text("entry_points.txt") or ""
        if f"[{GROUP}]" not in text.replace(" ", ""):
            continue
        directory = getattr(dist, "_path", None)  # public API names no path; without it a change in place is unseen
        if directory is not None:
            _watch(stamps, Path(directory) / "entry_points.txt")
            _watch(stamps, Path(directory) / "METADATA")
        for point in dist.entry_points.select(group=GROUP):
            if point.name in seen:
                continue
            seen.add(point.name)
            yield _from_distribution(dist, point, stamps)


def _from_distribution(
    dist: importlib.metadata.Distribution, point: importlib.metadata.EntryPoint, stamps: dict[str, str]
) -> Found:
    metadata: Any = dist.metadata  # an email.message.Message; its typed protocol lacks get()
    facts = {
        "name": point.name,
        "version": dist.version,
        "author": metadata.get("Author") or metadata.get("Author-email") or "",
        "description": metadata.get("Summary") or "",
    }
    file = _source_of(point.module)
    if file is not None:
        _watch(stamps, file)
    target = f"{point.module}:{point.attr or ''}"
    return _read(Found("entry point", point.name, target, file, f"distribution {dist.name}", facts))


def _source_of(module: str) -> Path | None:
    """Find a module's file by its name alone: importlib would import its parents."""
    relative = Path(*module.split("."))
    for entry in index.search_path():
        for candidate in (Path(entry, relative, "__init__.py"), Path(entry, relative).with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


def _read(found: Found) -> Found:
    """Take the literals out of the plugin's source; a file that cannot be parsed keeps its name by its folder."""
    found.facts.setdefault("name", found.folder.replace("_", "-"))
    if found.file is None:
        return found
    try:
        tree = ast.parse(found.file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return found
    wanted = found.target.partition(":")[2]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (node.name == wanted if wanted else _is_plugin(node)):
            found.facts.update(_literals(node))
            found.commands = list(_literal_commands(node))
            break
    return found


def _is_plugin(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split(".")[-1].endswith("Plugin") for base in node.bases)


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if _fits(name, literal):
            found[name] = list(literal) if isinstance(literal, tuple) else literal
    return found


def _fits(name: str, value: object) -> bool:
    """Whether a literal is of the kind that the field of that name holds."""
    if name in ("name", "version", "author", "description"):
        return isinstance(value, str) and value.strip() != ""
    if name in ("required_dependencies", "optional_dependencies", "requires", "conflicts"):
        return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    return name == "api" and type(value) is int


def _literal_commands(node: ast.ClassDef) -> Iterator[dict[str, str]]:
    for call in ast.walk(node):
        match call:
            case ast.Call(func=ast.Attribute(attr="add_command"), args=[ast.Constant(value=str(name)), *_]):
                texts = [k.value.value for k in call.keywords if k.arg == "help" and isinstance(k.value, ast.Constant)]
                yield {"name": name, "target": "", "help": str(texts[0]) if texts else ""}
