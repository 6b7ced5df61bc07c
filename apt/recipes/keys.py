"""The key of a step: a hash of all that its result depends on.

That is the operation's name, its options, the contents of the models, texts and files that it reads, the source of
its package, the source of the rooms that every operation stands on (assets, checkpoint, evaluation, training), and
the versions of torch, transformers and llama.cpp's packages. Shared source is part of the key because a change there
changes results too; it costs users nothing, whose source changes only when they upgrade.
"""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

import apt
from apt.document import Location
from apt.options import Input
from apt.recipes.digests import Digests
from apt.recipes.fields import Marked, marked
from apt.registry import Component

_SHARED: Final = ("assets", "checkpoint", "evaluation", "training")
#: The last two decide whether an exported file is also run in llama.cpp: a step that had to leave that out is run again
#: once they are there.
_LIBRARIES: Final = ("torch", "transformers", "gguf", "xllamacpp")
#: Options that say how to write, not what.
_NOT_PART: Final = ("overwrite",)


@dataclass(frozen=True, slots=True)
class StepKey:
    """What a step's result depends on.

    :param parts: each thing by name: ``operation``, ``options``, ``inputs``, ``source``, ``versions``.
    :param outputs: what the step writes.
    """

    parts: Mapping[str, Any]
    outputs: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """The key: SHA-256 of the parts."""
        return hashlib.sha256(_canonical(self.parts).encode()).hexdigest()

    def difference(self, old: Mapping[str, Any]) -> str:
        """Say in words what has changed since ``old`` parts; ``""`` when nothing has."""
        changed = []
        for part, value in self.parts.items():
            before = old.get(part)
            if before == value:
                continue
            if isinstance(value, Mapping) and isinstance(before, Mapping):
                names = sorted(k for k in {*value, *before} if value.get(k) != before.get(k))
                changed.append(f"{_WORDS[part]} {', '.join(names)} changed")
            else:
                changed.append(f"{_WORDS[part]} changed")
        return "; ".join(changed)


_WORDS: Final = {
    "operation": "operation",
    "options": "option",
    "inputs": "content of",
    "source": "source of",
    "versions": "version of",
}


def step_key(component: Component, options: BaseModel, digests: Digests) -> StepKey:
    """Compute a step's key.

    :raises NotFoundError: when an input does not exist.
    """
    values = options.model_dump(mode="json", by_alias=True)
    inputs: dict[str, str] = {}
    outputs: list[Path] = []
    for found in marked(options):
        if isinstance(found.mark, Input):
            inputs[_dotted(found.location)] = digests.input(found.mark.what, found.value)
            _put(values, found.location, "(input)")
        else:
            outputs.append(output_path(found))
            _put(values, found.location, str(outputs[-1]))
    parts = {
        "operation": component.name,
        "options": {k: v for k, v in values.items() if k not in _NOT_PART},
        "inputs": inputs,
        "source": {**_package_source(component.target.partition(":")[0]), **_shared_source()},
        "versions": _versions(),
    }
    return StepKey(parts, tuple(outputs))


def output_path(found: Marked) -> Path:
    """Return the absolute path of a marked output."""
    return Path(found.value).expanduser().absolute()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


@cache
def _shared_source() -> dict[str, str]:
    root = Path(apt.__file__).parent
    return {f"apt.{name}": _source_digest(sorted((root / name).rglob("*.py")), root) for name in _SHARED}


@cache
def _package_source(module: str) -> dict[str, str]:
    """The digest of a module's package; of the module alone where it is no part of one (a drop-in plugin)."""
    path = Path(str(sys.modules[module].__file__))
    if (path.parent / "__init__.py").exists() or module.startswith("apt."):
        package = module.rpartition(".")[0] or module
        return {package: _source_digest(sorted(path.parent.rglob("*.py")), path.parent)}
    return {module: _source_digest([path], path.parent)}


def _source_digest(files: list[Path], root: Path) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root)}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _put(tree: Any, location: Location, value: str) -> None:
    for part in location[:-1]:
        tree = tree[part]
    tree[location[-1]] = value


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
