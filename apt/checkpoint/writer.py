"""Writing a stock checkpoint: aside, with lineage and checksums, renamed once."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from apt.checkpoint.atomic import atomic_directory
from apt.checkpoint.reader import LINEAGE_NAME, SIDE_FILES, Checkpoint, file_digest
from apt.checkpoint.safetensors_header import DTYPE_BITS
from apt.console.errors import BadInputError
from apt.events import announce
from apt_model import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Version of the form of ``apt.json``.
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: safetensors dtype name and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        bits = DTYPE_BITS[self.dtype]
        for n in self.shape:
            bits *= n
        return (bits + 7) // 8


def safetensors_head(specs: Sequence[TensorSpec]) -> bytes:
    """Return what stands before the data of a safetensors file: the length of the header, and the header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for spec in specs:
        end = position + spec.size_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


class CheckpointWriter:
    """Write a checkpoint into a hidden sibling of ``target`` that becomes ``target`` on a clean exit.

    :param target: the directory to make.
    :param operation: what makes it ("prune", "distill", "import", …).
    :param parent: the checkpoint it was made from, recorded by digest.
    :param options: the operation's options as plain JSON values.
    :param overwrite: exchange an existing target.
    :param sources: what else it is made of; a target that is or holds one of them is not replaced.
    :raises TargetExistsError: on entering, when the target exists and ``overwrite`` is false.
    """

    def __init__(
        self,
        target: Path | str,
        *,
        operation: str,
        parent: Checkpoint | None,
        options: Mapping[str, Any],
        overwrite: bool = False,
        sources: Iterable[Path] = (),
    ) -> None:
        self.target = Path(target)
        #: Figures measured while it was made; set before leaving the block.
        self.metrics: dict[str, Any] = {}
        self._operation = operation
        self._parent = parent
        self._options = dict(options)
        self._overwrite = overwrite
        self._sources = tuple(sources)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        #: Where the files are written meanwhile.
        # A parent may be replaced by its child (-o PARENT --overwrite); a directory that holds more than it may not.
        sources = [*self._sources, *([self._parent.path.resolve().parent] if self._parent else [])]
        self.directory = self._stack.enter_context(
            atomic_directory(self.target, overwrite=self._overwrite, sources=sources)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._write_lineage()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._stack.__exit__(kind, error, traceback)
        if kind is None:
            announce("checkpoint_written", path=self.target, operation=self._operation, metrics=self.metrics)

    def write_tensors(
        self, specs: Sequence[TensorSpec], data: Iterable[tuple[str, bytes]], filename: str = "model.safetensors"
    ) -> None:
        """Write one safetensors file, a tensor at a time; ``data`` comes in the order of ``specs``.

        :raises BadInputError: when ``data`` does not match ``specs``.
        """
        with (self.directory / filename).open("xb") as stream:
            stream.write(safetensors_head(specs))
            for spec, (name, payload) in zip(specs, data, strict=True):
                if name != spec.name or len(payload) != spec.size_bytes:
                    raise BadInputError(f"tensor {name!r} of {len(payload)} bytes where {spec.name!r} was announced")
                stream.write(payload)

    def write_model(self, model: "PreTrainedModel", parent: Checkpoint) -> None:
        """Write a model in memory, in its dtype, with the parent's tokenizer and other side files."""
        from apt.checkpoint.loading import quiet_transformers

        with quiet_transformers():
            model.save_pretrained(self.directory)
        self.copy_side_files(parent)

    def adopt(self, path: Path) -> None:
        """Give a finished file beside the target a second name in the checkpoint; where that cannot be, copy it."""
        try:
            os.link(path, self.directory / path.name)
        except OSError:
            shutil.copyfile(path, self.directory / path.name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file beside the weights."""
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (self.directory / name).write_text(text, encoding="utf-8")

    def copy_side_files(self, parent: Checkpoint) -> None:
        """Copy tokenizer, templates, generation config and licence of the parent; what exists already stays."""
        for name in SIDE_FILES:
            source, target = parent.path / name, self.directory / name
            if name != "README.md" and source.is_file() and not target.exists():
                shutil.copyfile(source, target)

    def _write_lineage(self) -> None:
        _give_default_modes(self.directory)
        files = {
            p.name: {"size_bytes": p.stat().st_size, "sha256": file_digest(p)}
            for p in sorted(self.directory.iterdir())
            if p.is_file()
        }
        parent = self._parent and {"name": self._parent.name, "digest": self._parent.digest()}
        self.write_json(
            LINEAGE_NAME,
            {
                "format_version": FORMAT_VERSION,
                "operation": self._operation,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "parent": parent,
                "ancestors": _ancestors(self._parent),
                "options": self._options,
                "metrics": self.metrics,
                "packages": package_versions(),
                "files": files,
            },
        )


def _give_default_modes(directory: Path) -> None:
    """Give files the modes of the user's umask: the safetensors library writes 0600, unreadable for a server's user."""
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _ancestors(parent: Checkpoint | None) -> list[dict[str, Any]]:
    """Operations that led to the parent, oldest first."""
    if parent is None or parent.lineage is None:
        return []
    own = {"operation": parent.lineage.get("operation"), "name": parent.name}
    return [*parent.lineage.get("ancestors", []), own]


def package_versions() -> dict[str, str]:
    """Versions of what decides a result; a package that is not installed is left out."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "apt-model": __version__}
    for name in ("torch", "transformers", "safetensors", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def save_model(
    model: "PreTrainedModel",
    target: Path | str,
    *,
    operation: str,
    parent: Checkpoint,
    options: Mapping[str, Any],
    metrics: Mapping[str, Any],
    overwrite: bool = False,
) -> Checkpoint:
    """Write a model in memory as a stock checkpoint, in the model's dtype, with the parent's tokenizer.

    :raises TargetExistsError: when the target exists and ``overwrite`` is false.
    """
    with CheckpointWriter(target, operation=operation, parent=parent, options=options, overwrite=overwrite) as writer:
        writer.write_model(model, parent)
        writer.metrics.update(metrics)
    return Checkpoint.open(target)
