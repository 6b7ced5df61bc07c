"""Which models are there: the shipped one, the store, the caches of Hugging Face and Ollama, and given directories."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from apt import store
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.ollama_store import manifests, read_manifest
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import Format, open_model
from apt.console.errors import AptError, NotFoundError, UsageError, explain
from apt.console.table import Table
from apt.console.units import format_age, format_bytes, format_count
from apt.registry import did_you_mean

Place = Literal["shipped", "store", "cache", "ollama", "directory"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model; what cannot be read of a broken one is ``None``, and ``problem`` says why.

    :param name: what to give to other commands; for a model of Ollama's, its name there.
    :param place: ``cache`` is that of Hugging Face.
    :param operation: what made it here, "" for one made elsewhere; ``parent`` is the name of what it was made of.
    :param depth: how many of its ancestors are listed above it: the list is a tree unless it is sorted.
    :param changed_seconds: when its directory or file was last changed, in seconds since 1970.
    """

    name: str
    place: Place
    path: Path
    format: Format | None
    architecture: str | None
    parameters: int | None
    size_bytes: int | None
    operation: str
    parent: str
    depth: int
    changed_seconds: float
    problem: str


@dataclass(frozen=True, slots=True)
class ModelList:
    """What ``list`` tells."""

    models: tuple[ListedModel, ...]

    def tables(self) -> list[Table]:
        """Return the models, one a row, descendants under their parents, and the faults of the broken ones."""
        now = time.time()
        rows = [
            [
                f"{'  ' * (m.depth - 1)}└ {m.name}" if m.depth else m.name,
                m.place,
                m.format or "-",
                m.architecture or "-",
                "-" if m.parameters is None else format_count(m.parameters),
                "-" if m.size_bytes is None else format_bytes(m.size_bytes),
                f"{m.operation} of {m.parent}" if m.parent else m.operation or "-",
                format_age(now - m.changed_seconds),
            ]
            for m in self.models
        ]
        columns = ("name", "place", "format", "architecture", "parameters", "size", "made by", "age")
        tables = [Table("" if rows else "no models", columns, rows)]
        if broken := [[m.name, m.problem] for m in self.models if m.problem]:
            tables.append(Table("Not readable", ("name", "problem"), broken))
        return tables


#: What a list can be sorted by, and whether the largest comes first.
SORT_KEYS: Final = {
    "name": False,
    "place": False,
    "architecture": False,
    "parameters": True,
    "size": True,
    "age": False,
}
#: What ``field=value`` can ask for.
_FILTERED: Final = ("name", "place", "format", "architecture", "operation", "parent")


def list_models(directories: Iterable[Path] = (), *, sort: str | None = None, filters: Iterable[str] = ()) -> ModelList:
    """List models by their headers; an absent store or cache is empty, a broken model is listed with its problem.

    :param directories: directories whose models are listed too; a directory that is a model is listed itself.
    :param sort: one of :data:`SORT_KEYS`; without it descendants stand under their parents.
    :param filters: each must hold: ``text`` that one of a model's words contains, or ``field=value``; case is equal.
    :raises NotFoundError: for what is neither a directory nor a model's file.
    :raises UsageError: for an unknown key or field.
    """
    if sort is not None and sort not in SORT_KEYS:
        raise UsageError(f"--sort: no key is called {sort!r}", hint=did_you_mean(sort, SORT_KEYS))
    wanted = [_parsed(text) for text in filters]
    found = [*_shipped(), *_stored(), *_cached(), *_of_ollama()]
    for directory in directories:
        if not directory.is_dir() and not (directory.is_file() and _looks_like_model(directory)):
            raise NotFoundError(f"no such directory: {directory}")
        found += _in_directory(directory)
    kept = [m for m in found if all(_holds(m, field, value) for field, value in wanted)]
    return ModelList(tuple(_as_tree(kept) if sort is None else _sorted(kept, sort)))


def _parsed(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals:
        return "", text.casefold()
    if field not in _FILTERED:
        raise UsageError(f"--filter: models have no {field!r}", hint=did_you_mean(field, _FILTERED))
    return field, value.casefold()


def _holds(model: ListedModel, field: str, value: str) -> bool:
    if field:
        return str(getattr(model, field) or "").casefold() == value
    return any(value in str(getattr(model, name) or "").casefold() for name in _FILTERED)


def _sorted(models: list[ListedModel], key: str) -> list[ListedModel]:
    """Sort; what is not known comes last either way."""

    def rank(model: ListedModel) -> tuple[bool, Any]:
        values = {"size": model.size_bytes, "age": -model.changed_seconds, "parameters": model.parameters}
        value: Any = values[key] if key in values else getattr(model, key)
        if value is None:
            return True, 0
        return False, value.casefold() if isinstance(value, str) else -value if SORT_KEYS[key] else value

    return sorted(models, key=rank)


def _as_tree(models: list[ListedModel]) -> list[ListedModel]:
    """Put each model under the one it was made of, where that is listed; by name, as lineage records it."""
    by_name: dict[str, ListedModel] = {}
    for model in models:
        by_name.setdefault(model.path.name if model.place != "cache" else model.name, model)
    children: dict[int, list[ListedModel]] = {}
    roots = []
    for model in models:
        parent = by_name.get(model.parent) if model.parent else None
        if parent is None or parent is model:
            roots.append(model)
        else:
            children.setdefault(id(parent), []).append(model)
    ordered: list[ListedModel] = []
    waiting = [(model, 0) for model in reversed(roots)]
    while waiting:
        model, depth = waiting.pop()
        ordered.append(replace(model, depth=depth))
        waiting += [(child, depth + 1) for child in reversed(children.pop(id(model), []))]
    # Names that go round in a circle have no root; they are listed all the same.
    reached = {m.path for m in ordered}
    return ordered + [m for m in models if m.path not in reached]


def _shipped() -> Iterator[ListedModel]:
    path = store.embedded_path()
    if (path / "config.json").is_file():
        yield _describe(store.EMBEDDED, "shipped", path)


def _stored() -> Iterator[ListedModel]:
    for path in store.list_models():
        yield _describe(path.name, "store", path)


def _cached() -> Iterator[ListedModel]:
    """Yield each snapshot of a model in the Hub's cache, by the revision that points at it."""
    cache = store.hub_cache()
    if not cache.is_dir():
        return
    for folder in sorted(cache.glob("models--*")):
        name = "hf:" + folder.name.removeprefix("models--").replace("--", "/")
        commits: dict[str, str] = {}
        for ref in sorted(p for p in folder.glob("refs/**/*") if p.is_file()):
            revision = ref.relative_to(folder / "refs").as_posix()
            commits[ref.read_text(encoding="ascii", errors="replace").strip()] = revision
        for snapshot in sorted(p for p in folder.glob("snapshots/*") if p.is_dir()):
            revision = commits.get(snapshot.name, snapshot.name)
            if (snapshot / "config.json").exists():  # a data set's or a tokenizer's snapshot is no model
                yield _describe(name if revision == "main" else f"{name}@{revision}", "cache", snapshot)
            for file in sorted(snapshot.glob("*.gguf")):
                yield _describe(str(file), "cache", file)


def _of_ollama() -> Iterator[ListedModel]:
    for name, path in manifests():
        try:
            model = read_manifest(name, path)
        except (AptError, OSError) as error:
            yield _listed(name, "ollama", path, {}, str(error))
            continue
        listed = _describe(name, "ollama", model.blob)
        yield replace(listed, size_bytes=model.size_bytes, changed_seconds=path.stat().st_mtime)


def _in_directory(directory: Path) -> Iterator[ListedModel]:
    """Yield the directory itself when it is a model, else the models in it and the GGUFs one level below."""
    if _looks_like_model(directory):
        yield _describe(str(directory), "directory", directory)
        return
    for path in sorted(p for p in directory.iterdir() if not p.name.startswith(".")):
        if _looks_like_model(path):
            yield _describe(str(path), "directory", path)
        elif path.is_dir():
            for file in sorted(path.glob("*.gguf")):
                yield _describe(str(file), "directory", file)


def _looks_like_model(path: Path) -> bool:
    if path.is_dir():
        try:
            return (path / "config.json").is_file()
        except PermissionError:  # it may be one: listed with what forbids to look
            return True
    return path.suffix in (".gguf", ".safetensors")


def _describe(name: str, place: Place, path: Path) -> ListedModel:
    facts: dict[str, Any] = {}
    try:
        model = open_model(str(path))
        facts = {"parameters": model.parameters, "size_bytes": model.size_bytes}
        if isinstance(model, GGUFFile):
            facts |= {"format": "gguf", "architecture": model.architecture}
        else:
            facts |= {"format": "safetensors", "architecture": str(model.config.get("model_type") or "unknown")}
            facts |= _lineage(model)
    except (AptError, OSError) as error:
        return _listed(name, place, path, facts, str(explain(error) or error))
    return _listed(name, place, path, facts, "")


def _listed(name: str, place: Place, path: Path, facts: dict[str, Any], problem: str) -> ListedModel:
    return ListedModel(
        name=name,
        place=place,
        path=path,
        format=facts.get("format"),
        architecture=facts.get("architecture"),
        parameters=facts.get("parameters"),
        size_bytes=facts.get("size_bytes"),
        operation=facts.get("operation", ""),
        parent=facts.get("parent", ""),
        depth=0,
        changed_seconds=_changed_seconds(path),
        problem=problem,
    )


def _changed_seconds(path: Path) -> float:
    """When what a path leads to was changed; when the link was made, where it leads to nothing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return path.lstat().st_mtime


def _lineage(checkpoint: Checkpoint) -> dict[str, str]:
    lineage = checkpoint.lineage or {}
    parent = lineage.get("parent")
    name = str(parent.get("name") or "") if isinstance(parent, dict) else ""
    return {"operation": str(lineage.get("operation") or ""), "parent": name}
