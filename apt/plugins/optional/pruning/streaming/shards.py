"""The weight files of a checkpoint that is made layer by layer: laid out before the first layer is done.

Sizes are known from the plan, so each tensor has its place in a file from the start. What is made is written there and
never copied; the files become the checkpoint's by a second name.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from apt.checkpoint.safetensors_header import TensorInfo
from apt.checkpoint.writer import TensorSpec, safetensors_head
from apt.console.errors import BadInputError

#: A weight file grows no larger than this, unless a single tensor is.
SHARD_BYTES: Final = 2 << 30

#: Bytes that are copied or digested at a time.
_PIECE: Final = 16 << 20


class Shards:
    """Weight files in a directory.

    :param specs: all tensors, in the order in which they are laid out.
    """

    def __init__(self, directory: Path, specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> None:
        self._groups = _grouped(specs, shard_bytes)
        count = len(self._groups)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        #: The files.
        self.paths = [directory / name for name in (names if count > 1 else ["model.safetensors"])]
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path, group in zip(self.paths, self._groups, strict=True):
            position = len(safetensors_head(group))
            for spec in group:
                self._places[spec.name] = (path, position, spec.size_bytes)
                position += spec.size_bytes
        self.size_bytes = sum(len(safetensors_head(g)) + sum(s.size_bytes for s in g) for g in self._groups)

    def create(self) -> None:
        """Make the files in their full size, so that a disk that is too small is told of at once."""
        for path, group in zip(self.paths, self._groups, strict=True):
            head = safetensors_head(group)
            size = len(head) + sum(spec.size_bytes for spec in group)
            with path.open("xb") as stream:
                _reserve(stream.fileno(), size)
                stream.write(head)
                stream.flush()
                os.fsync(stream.fileno())

    def are_there(self) -> bool:
        """Whether every file has its size and its header."""
        for path, group in zip(self.paths, self._groups, strict=True):
            head = safetensors_head(group)
            size = len(head) + sum(spec.size_bytes for spec in group)
            if not path.is_file() or path.stat().st_size != size:
                return False
            with path.open("rb") as stream:
                if stream.read(len(head)) != head:
                    return False
        return True

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors to their places and flush them to the disk."""
        from torch import uint8

        touched = set()
        for name, tensor in tensors.items():
            path, start, size = self._places[name]
            values: Any = tensor.contiguous().flatten().view(uint8).numpy()  # numpy's stubs do not say: a buffer
            data = memoryview(values)
            assert len(data) == size, name
            with path.open("r+b", buffering=0) as stream:
                stream.seek(start)
                while data:
                    data = data[stream.write(data) :]
            touched.add(path)
        for path in touched:
            _fsync(path)

    def copy(self, name: str, source: TensorInfo) -> None:
        """Copy a tensor from another file, piece by piece.

        :raises BadInputError: when that file is shorter than its header says.
        """
        path, start, size = self._places[name]
        with path.open("r+b", buffering=0) as target, source.path.open("rb", buffering=0) as stream:
            target.seek(start)
            stream.seek(source.start)
            while size:
                piece = memoryview(stream.read(min(size, _PIECE)))
                if not piece:
                    raise BadInputError(f"{source.path} is cut short: {name!r} ends beyond it")
                size -= len(piece)
                while piece:
                    piece = piece[target.write(piece) :]

    def flush(self) -> None:
        """Flush all files to the disk."""
        for path in self.paths:
            _fsync(path)

    def digest(self, names: Iterable[str]) -> str:
        """SHA-256 of the bytes of tensors, in that order."""
        total = hashlib.sha256()
        for name in names:
            for piece in self._pieces(name):
                total.update(piece)
        return total.hexdigest()

    def _pieces(self, name: str) -> Iterator[bytes]:
        path, start, size = self._places[name]
        with path.open("rb", buffering=0) as stream:
            stream.seek(start)
            while size:
                piece = stream.read(min(size, _PIECE))
                if not piece:
                    return
                size -= len(piece)
                yield piece

    def index(self) -> dict[str, Any] | None:
        """Return what the index file says; ``None`` where there is one file only."""
        if len(self.paths) == 1:
            return None
        total = sum(size for _, _, size in self._places.values())
        weight_map = {name: path.name for name, (path, _, _) in sorted(self._places.items())}
        return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _grouped(specs: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.size_bytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.size_bytes
    return groups


def _reserve(handle: int, size: int) -> None:
    """Give a file its size and its blocks on the disk, or only its size where the system cannot."""
    try:
        os.posix_fallocate(handle, 0, size)
    except AttributeError:  # not offered
        os.ftruncate(handle, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(handle, size)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
