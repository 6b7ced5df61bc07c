"""What the engine remembers of each step, in ``<out>/.apt/steps/<name>.json``."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from apt.checkpoint.atomic import atomic_file
from apt.console.output import to_json
from apt.console.table import Table
from apt.recipes.digests import Digests, signature, tree_files

_FORMAT: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """An output as the step left it; ``stat`` tells at a glance whether anyone touched it since."""

    digest: str
    stat: str


@dataclasses.dataclass(frozen=True, slots=True)
class StepRecord:
    """One step's last run.

    :param status: ``started`` until the result is known; its outputs are the engine's to replace either way.
    :param parts: what the key was made of.
    :param outputs: by absolute path; without digests while the step is only started.
    :param result: the operation's result as plain values.
    """

    operation: str
    status: Literal["started", "done"]
    key: str
    parts: Mapping[str, Any]
    outputs: Mapping[str, Written | None]
    seconds: float = 0.0
    result: Any = None
    tables: Sequence[Table] = ()


class Records:
    """The records below one output directory."""

    def __init__(self, out: Path) -> None:
        self.directory = out / ".apt"

    def path(self, name: str) -> Path:
        """Return where a step's record lies."""
        return self.directory / "steps" / f"{name}.json"

    def read(self, name: str) -> StepRecord | None:
        """Return a step's record; ``None`` when there is none that can be read."""
        try:
            raw = json.loads(self.path(name).read_text(encoding="utf-8"))
            if raw.pop("format") != _FORMAT:
                return None
            raw["outputs"] = {p: None if w is None else Written(**w) for p, w in raw["outputs"].items()}
            raw["tables"] = tuple(
                Table(t["title"], tuple(t["columns"]), [tuple(row) for row in t["rows"]]) for t in raw["tables"]
            )
            return StepRecord(**raw)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, name: str, record: StepRecord) -> None:
        """Write a step's record, atomically.

        :raises CannotWriteError: when the output directory cannot be written.
        """
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, **{f.name: getattr(record, f.name) for f in dataclasses.fields(record)}}
        with atomic_file(self.path(name), overwrite=True) as stream:
            stream.write(to_json(content).encode())


def witness(path: Path, digests: Digests) -> Written:
    """Return the present state of an output.

    :raises NotFoundError: when it is not there.
    """
    digest = digests.tree(path)
    return Written(digest, _stat(path))


def fault_of(path: Path, written: Written | None, digests: Digests) -> str:
    """Say what is wrong with an output that was recorded; ``""`` when it is as the step left it."""
    if not path.exists():
        return f"{path.name} is gone"
    if written is None:
        return f"{path.name} was never finished"
    if _stat(path) == written.stat or digests.tree(path) == written.digest:
        return ""
    return f"{path.name} was changed"


def _stat(path: Path) -> str:
    total = hashlib.sha256()
    for file in tree_files(path):
        total.update(f"{file.relative_to(path)}\0{signature(file)}\n".encode())
    return total.hexdigest()
