"""The operation ``difference``: what of a checkpoint is new against another one, by contents."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from apt.checkpoint.reader import Checkpoint, file_digest
from apt.console.table import Table
from apt.options import ModelRef, Options


class DifferenceOptions(Options):
    """Two checkpoints, the older one first."""

    first: ModelRef = Field(description="The older checkpoint.")
    second: ModelRef = Field(description="The newer one, of which is told what the older one lacks.")


@dataclass(frozen=True, slots=True)
class DifferenceResult:
    """What the second checkpoint holds that the first does not.

    :param identical: whether both hold the same files, byte for byte, the lineage included.
    :param changed_tensors: tensors of the second whose dtype, shape or bytes no tensor of the first has.
    :param changed_bytes: their bytes.
    """

    first: Path
    second: Path
    identical: bool
    tensors: int
    changed_tensors: int
    changed_bytes: int
    changed_files: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Return one table of facts."""
        rows = [
            ("identical", "yes, byte for byte" if self.identical else "no"),
            ("tensors", f"{self.changed_tensors} of {self.tensors} changed, {self.changed_bytes:,} bytes"),
            ("files", ", ".join(self.changed_files) or "none changed"),
        ]
        return [Table(f"{self.second} against {self.first}", ("", "difference"), rows)]


def difference(options: DifferenceOptions) -> DifferenceResult:
    """Compare two checkpoints by the contents of their tensors and files.

    :raises NotFoundError: when one of them is not there.
    """
    first, second = Checkpoint.open(options.first), Checkpoint.open(options.second)
    known = {_content(first, name) for name in first.tensors}
    changed = [name for name in second.tensors if _content(second, name) not in known]
    before, after = _files(first), _files(second)
    files = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return DifferenceResult(
        first=first.path,
        second=second.path,
        identical=not files,
        tensors=len(second.tensors),
        changed_tensors=len(changed),
        changed_bytes=sum(second.tensors[name].size_bytes for name in changed),
        changed_files=tuple(files),
    )


def _content(checkpoint: Checkpoint, name: str) -> tuple[str, tuple[int, ...], bytes]:
    tensor = checkpoint.tensors[name]
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(checkpoint.read_bytes(name)).digest()


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    return {str(p.relative_to(checkpoint.path)): file_digest(p) for p in checkpoint.path.rglob("*") if p.is_file()}
