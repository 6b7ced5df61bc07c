"""Which models are there: the shipped one, the store, the Hugging Face cache, and directories that are named."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apt import store
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import Format, open_model
from apt.console.errors import AptError, NotFoundError
from apt.console.table import Table
from apt.console.units import format_age, format_bytes, format_count

Place = Literal["shipped", "store", "cache", "directory"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model; what cannot be read of a broken one is ``None``, and ``problem`` says why.

    :param name: what to give to other commands.
    :param place: ``cache`` is that of Hugging Face.
    :param operation: what made it here, "" for one made elsewhere; ``parent`` is the name of what it was made of.
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
    changed_seconds: float
    problem: str


@dataclass(frozen=True, slots=True)
class ModelList:
    """What ``list`` tells."""

    models: tuple[ListedModel, ...]

    def tables(self) -> list[Table]:
        """Return the models, one a row, and the faults of the broken ones."""
        now = time.time()
        rows = [
            [
                m.name,
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


def list_models(directories: Iterable[Path] = ()) -> ModelList:
    """List models by their headers; an absent store or cache is empty, a broken model is listed with its problem.

    :param directories: directories whose models are listed too; a directory that is a model is listed itself.
    :raises NotFoundError: for a directory that does not exist.
    """
    found = [*_shipped(), *_stored(), *_cached()]
    for directory in directories:
        if not directory.exists():
            raise NotFoundError(f"no such directory: {directory}")
        found += _in_directory(directory)
    return ModelList(tuple(found))


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


def _in_directory(directory: Path) -> Iterator[ListedModel]:
    if _looks_like_model(directory):
        yield _describe(str(directory), "directory", directory)
        return
    for path in sorted(p for p in directory.iterdir() if not p.name.startswith(".")):
        if _looks_like_model(path):
            yield _describe(str(path), "directory", path)


def _looks_like_model(path: Path) -> bool:
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.suffix in (".gguf", ".safetensors")


def _describe(name: str, place: Place, path: Path) -> ListedModel:
    facts: dict[str, Any] = {"format": None, "architecture": None, "parameters": None, "size_bytes": None}
    operation, parent, problem = "", "", ""
    try:
        model = open_model(str(path))
        facts |= {"parameters": model.parameters, "size_bytes": model.size_bytes}
        if isinstance(model, GGUFFile):
            facts |= {"format": "gguf", "architecture": model.architecture}
        else:
            facts |= {"format": "safetensors", "architecture": str(model.config.get("model_type") or "unknown")}
            operation, parent = _lineage(model)
    except (AptError, OSError) as error:
        problem = str(error)
    return ListedModel(
        name=name,
        place=place,
        path=path,
        **facts,
        operation=operation,
        parent=parent,
        changed_seconds=path.stat().st_mtime,
        problem=problem,
    )


def _lineage(checkpoint: Checkpoint) -> tuple[str, str]:
    lineage = checkpoint.lineage or {}
    parent = lineage.get("parent")
    return str(lineage.get("operation") or ""), str(parent.get("name") or "") if isinstance(parent, dict) else ""
