"""``huggingface import``: a model from anywhere becomes a checkpoint that the other commands can rely on."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from apt.checkpoint.reader import LINEAGE_NAME, read_json
from apt.checkpoint.writer import CheckpointWriter
from apt.console.errors import AptError
from apt.console.progress import progress
from apt.console.table import Table
from apt.options import ModelRef, Options, OutputPath, Overwrite
from apt.plugins.builtin.huggingface.check import Facts, check_model
from apt.plugins.builtin.huggingface.layout import Layout, choose
from apt.plugins.builtin.huggingface.origins import Origin, locate
from apt.plugins.builtin.huggingface.pickles import convert, tied_head
from apt.store import resolve


class ImportOptions(Options):
    """What to import where."""

    model: ModelRef
    output: OutputPath
    revision: str = Field(default="", description="Branch, tag or commit of a model of a Hub.")
    trust_remote_code: bool = Field(default=False, description="Take and run the model's own Python code.")
    overwrite: Overwrite = False


@dataclass(frozen=True)
class ImportResult:
    """The imported checkpoint.

    ``revision`` is the commit that it was pinned to, empty for a directory; ``verified_files`` counts the files that
    were checked against a checksum of the origin; ``converted`` tells that pickles became safetensors.
    """

    path: Path
    source: str
    revision: str
    architecture: str
    parameters: int
    tensors: int
    dtypes: tuple[str, ...]
    size_bytes: int
    files: tuple[str, ...]
    verified_files: int
    converted: bool
    dry_run: bool = False

    def tables(self) -> list[Table]:
        """One table of facts."""
        rows = [
            ("from", self.source + (f" @ {self.revision}" if self.revision else "")),
            ("written to", str(self.path)),
            ("architecture", self.architecture),
            ("parameters", f"{self.parameters:,}" if self.parameters else ""),
            ("tensors", f"{self.tensors} ({', '.join(self.dtypes)})" if self.tensors else ""),
            ("size, bytes", f"{self.size_bytes:,}"),
            ("files", f"{len(self.files)} ({self.verified_files} checked against the origin's checksum)"),
            ("converted", "pickles to safetensors" if self.converted else ""),
        ]
        title = "would be imported" if self.dry_run else "imported"
        return [Table(title, ("", ""), [row for row in rows if row[1]])]


def import_model(options: ImportOptions) -> ImportResult:
    """Import a model, check it, and put it in its place whole or not at all.

    :raises NotFoundError: when the model, its config or its weights are not there.
    :raises BadInputError: for a file that is not what its checksum says, a name that leaves the directory, a pickle
        with code, or a missing, unexpected or mismatched tensor; nothing is left then.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    origin = locate(options.model, options.revision)
    layout = _choose(origin, options)
    lineage = _lineage(origin, layout, options)
    with CheckpointWriter(
        options.output,
        operation="import",
        parent=None,
        options=lineage,
        overwrite=options.overwrite,
        sources=[origin.directory] if origin.directory else [],
    ) as writer:
        facts = _fill(writer, origin, layout, options)
        writer.metrics.update({"parameters": facts.parameters, "tensors": facts.tensors})
        files = sorted(p for p in writer.directory.iterdir() if p.is_file())
        names, size = tuple(p.name for p in files), sum(p.stat().st_size for p in files)
    return ImportResult(
        path=options.output,
        source=origin.label,
        revision=origin.commit,
        architecture=facts.architecture,
        parameters=facts.parameters,
        tensors=facts.tensors,
        dtypes=facts.dtypes,
        size_bytes=size,
        files=names,
        verified_files=len(_taken(layout) & origin.checksums().keys()),
        converted=layout.pickled,
    )


def plan_import(options: ImportOptions) -> ImportResult:
    """Return which files :func:`import_model` would take; nothing is written, and their content is not checked."""
    origin = locate(options.model, options.revision)
    layout = _choose(origin, options)
    sizes = origin.sizes()
    taken = sorted(_taken(layout))
    return ImportResult(
        path=options.output,
        source=origin.label,
        revision=origin.commit,
        architecture="",
        parameters=0,
        tensors=0,
        dtypes=(),
        size_bytes=sum(sizes[n] for n in taken),
        files=tuple(taken),
        verified_files=0,
        converted=layout.pickled,
        dry_run=True,
    )


def _choose(origin: Origin, options: ImportOptions) -> Layout:
    def read_index(name: str) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="apt-import-") as folder:
            origin.bring(name, Path(folder) / name, lambda _: None)
            with _told_of(Path(folder), origin):
                return read_json(Path(folder) / name)

    return choose(origin.sizes().keys(), read_index, label=origin.label, code=options.trust_remote_code)


def _taken(layout: Layout) -> set[str]:
    return {*layout.weights, *layout.others, *([layout.index] if layout.index else [])}


def _fill(writer: CheckpointWriter, origin: Origin, layout: Layout, options: ImportOptions) -> Facts:
    """Bring the files into the writer's directory, convert pickles, and check the whole."""
    sizes = origin.sizes()
    names = sorted(_taken(layout) - ({layout.index} if layout.pickled else set()))
    pickles = writer.directory / ".pickles"
    with progress(f"importing {origin.label}", sum(sizes[n] for n in names), "bytes") as bar:
        for name in names:
            folder = writer.directory
            if layout.pickled and name in layout.weights:
                pickles.mkdir(exist_ok=True)
                folder = pickles
            origin.bring(name, folder / name, bar.advance)
    with _told_of(writer.directory, origin):
        if layout.pickled:
            tied = tied_head(writer.directory / "config.json")
            paths = [pickles / name for name in layout.weights]
            convert(paths, writer, label=origin.label, tied=tied)
            for path in paths:
                path.unlink()
            pickles.rmdir()
        return check_model(writer.directory, label=origin.label, trust_remote_code=options.trust_remote_code)


def _lineage(origin: Origin, layout: Layout, options: ImportOptions) -> dict[str, Any]:
    """What ``apt.json`` says of the import; the history of a checkpoint that has one is kept."""
    checksums = origin.checksums()
    found: dict[str, Any] = {
        "source": origin.label,
        "revision": origin.commit,
        "converted_from": sorted(layout.weights) if layout.pickled else [],
        "checksums": {n: checksums[n] for n in sorted(_taken(layout)) if n in checksums},
        "trust_remote_code": options.trust_remote_code,
    }
    if not origin.commit:
        earlier = resolve(options.model) / LINEAGE_NAME
        if earlier.is_file():
            found["source_lineage"] = read_json(earlier)
    return found


@contextmanager
def _told_of(hidden: Path, origin: Origin) -> Iterator[None]:
    """Name the origin in messages in place of the hidden directory where the files are meanwhile."""
    try:
        yield
    except AptError as error:
        error.message = error.message.replace(str(hidden), origin.label)
        raise
