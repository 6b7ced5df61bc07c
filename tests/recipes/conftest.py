"""A laboratory of small operations, written to a package of its own for each test."""

import importlib
import itertools
import sys
import textwrap
from pathlib import Path

import pytest

from apt.recipes import keys
from apt.registry import Component, Registry

SOURCE = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from pydantic import Field, field_validator
from apt.checkpoint.atomic import atomic_file
from apt.console.errors import CheckFailedError
from apt.console.table import Table
from apt.options import FileRef, ModelRef, Options, OutputPath, TextRef

class Shape(Options):
    width: int = 1
    height: float = 1.0

class WriteOptions(Options):
    output: OutputPath
    text: str = "hello"
    times: int = Field(default=1, ge=1)
    overwrite: bool = False

class JoinOptions(Options):
    output: OutputPath
    files: list[FileRef]
    mode: Literal["plain", "loud"] = "plain"
    scale: float = 1.0
    shape: Shape = Shape()
    extra: dict[str, Any] = {}
    calibration: TextRef | None = None
    model: ModelRef | None = None
    wait_for: Path | None = None

@dataclass(frozen=True)
class Written:
    path: Path
    size_bytes: int
    lines: tuple[int, ...] = (3, 5)
    score: float | None = None
    def tables(self):
        return [Table("written", ("path", "bytes"), [(self.path.name, str(self.size_bytes))])]

def _log(output):
    log = output.parent.parent / "calls.log"
    with log.open("a") as stream:
        stream.write(output.name + "\\n")

def write(options: WriteOptions) -> Written:
    _log(options.output)
    with atomic_file(options.output, overwrite=options.overwrite) as stream:
        stream.write((options.text * options.times).encode())
    return Written(options.output, options.output.stat().st_size, score=float("nan"))

def join(options: JoinOptions) -> Written:
    _log(options.output)
    if options.wait_for:
        (options.output.parent.parent / "waiting").touch()
        deadline = time.monotonic() + 30
        while not options.wait_for.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    text = "".join(p.read_text() for p in options.files) + str(options.scale)
    with atomic_file(options.output) as stream:
        stream.write((text.upper() if options.mode == "loud" else text).encode())
    return Written(options.output, options.output.stat().st_size, score=0.5)

def fail(options: WriteOptions) -> Written:
    raise CheckFailedError("the figures are bad", hint="try again")

def lie(options: WriteOptions) -> Written:
    return Written(options.output, 0)
"""

_numbers = itertools.count()


class Lab:
    """The package and its registry, an output directory, and what was called."""

    def __init__(self, root: Path, package: str) -> None:
        self.root = root
        self.package = package
        self.out = root / "out"
        self.source = root / package / "operations.py"
        module = f"{package}.operations"
        schemas = {"write": "WriteOptions", "join": "JoinOptions", "fail": "WriteOptions", "lie": "WriteOptions"}
        self.registry = Registry(
            Component("operation", name, f"{module}:{name}", f"{module}:{schema}") for name, schema in schemas.items()
        )

    def recipe(self, text: str, name: str = "recipe.yaml") -> Path:
        path = self.root / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def calls(self) -> list[str]:
        """The outputs that operations were called for since the last time."""
        log = self.root / "calls.log"
        found = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def reload(self) -> None:
        """Import the package anew after its source was changed, as a new process would."""
        for name in [n for n in sys.modules if n.partition(".")[0] == self.package]:
            del sys.modules[name]
        importlib.invalidate_caches()
        keys._package_source.cache_clear()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    package = f"lab{next(_numbers)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "operations.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(keys, "_shared_source", dict)  # whoever edits the package while the tests run
    return Lab(tmp_path, package)
