"""Residual streams of the calibration rows: in memory while they are small, else in files, a batch at a time."""

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import torch
from torch import Tensor

from apt.checkpoint.atomic import fsync_directory
from apt.console.errors import BadInputError
from apt.plugins.optional.pruning.decoder.trace import CalibrationBatch

#: Streams are kept in memory as long as all of them together take no more than this.
MEMORY_BYTES: Final = 512 << 20


class Streams(Sequence[Tensor]):
    """One float32 tensor a batch. Reading one from a file gives a new tensor; writing is by :meth:`put`.

    The file is read and written, not mapped: a mapped page would count as the process's memory.

    :param shapes: of the batches.
    :param path: where the tensors lie, or will by :meth:`save`.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], path: Path, *, in_memory: bool) -> None:
        self._shapes = list(shapes)
        self._path = path
        sizes = [4 * math.prod(shape) for shape in self._shapes]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._tensors: list[Tensor | None] | None = [None] * len(self._shapes) if in_memory else None
        self._handle: int | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return self._starts[-1]

    @property
    def path(self) -> Path:
        """Where they lie once they are saved."""
        return self._path

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Tensor]": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if self._tensors is not None:
            tensor = self._tensors[index]
            assert tensor is not None, "read before it was put"
            return tensor
        data = bytearray(self._starts[index + 1] - self._starts[index])
        if os.preadv(self._opened(), [data], self._starts[index]) != len(data):
            raise BadInputError(f"{self._path} is cut short")
        return torch.frombuffer(data, dtype=torch.float32).reshape(self._shapes[index])

    def put(self, index: int, tensor: Tensor) -> None:
        """Set the tensor of a batch; its shape is the batch's."""
        assert tuple(tensor.shape) == self._shapes[index]
        if self._tensors is not None:
            self._tensors[index] = tensor
        else:
            _write_at(self._opened(), tensor, self._starts[index])

    def put_all(self, tensors: Iterable[Tensor]) -> "Streams":
        """Set all tensors, one after another; returns itself."""
        for index, tensor in enumerate(tensors):
            self.put(index, tensor)
        return self

    def save(self) -> None:
        """Write them to the disk, whole or not at all."""
        if self._tensors is None:
            os.fsync(self._opened())
            self._aside.rename(self._path)
        else:
            handle = os.open(self._aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                for start, tensor in zip(self._starts, self._tensors, strict=False):
                    assert tensor is not None
                    _write_at(handle, tensor, start)
                os.fsync(handle)
            finally:
                os.close(handle)
            self._aside.rename(self._path)
        fsync_directory(self._path.parent)

    def load(self) -> None:
        """Take up what :meth:`save` wrote.

        :raises BadInputError: when the file is of another size.
        """
        if not self._path.is_file() or self._path.stat().st_size != self.size_bytes:
            raise BadInputError(f"{self._path} does not hold the streams")
        handle = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if self._tensors is None:
            self._handle = handle
            return
        memory, self._tensors, self._handle = self._tensors, None, handle
        for index in range(len(self)):
            memory[index] = self[index]
        self._tensors = memory
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def discard(self) -> None:
        """Remove them, saved or not."""
        self.close()
        self._aside.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    @property
    def _aside(self) -> Path:
        return self._path.with_name(f"{self._path.name}.partial")

    def _opened(self) -> int:
        if self._handle is None:
            self._handle = os.open(self._aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        return self._handle


class StreamPart(Sequence[Any]):
    """Some of the batches, each read when it is asked for."""

    def __init__(self, streams: Streams, indices: range) -> None:
        self._streams, self._indices = streams, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return StreamPart(self._streams, self._indices[index])
        return self._streams[self._indices[index]]


def _write_at(handle: int, tensor: Tensor, start: int) -> None:
    values: Any = tensor.contiguous().numpy()  # numpy's stubs do not say that it is a buffer
    view = memoryview(values).cast("B")
    while view:
        count = os.pwrite(handle, view, start)
        view, start = view[count:], start + count


@dataclass(frozen=True)
class StreamPlace:
    """Makes streams of one set of batches.

    :param windows: (rows, window) of each batch.
    :param directory: where files go.
    :param in_memory: whether the tensors stay in memory.
    """

    windows: tuple[tuple[int, int], ...]
    directory: Path
    in_memory: bool

    @classmethod
    def of(cls, batches: Sequence[CalibrationBatch], directory: Path, width: int, limit_bytes: int) -> "StreamPlace":
        """Choose by size.

        :param width: floats of a token that are alive at a time, in all streams together.
        """
        windows = tuple((len(b.ids), b.ids.shape[1]) for b in batches)
        tokens = sum(rows * window for rows, window in windows)
        return cls(windows, directory, 4 * tokens * width <= limit_bytes)

    def new(self, name: str, width: int) -> Streams:
        """Return streams of ``width`` floats a token, without values yet."""
        shapes = [(rows, window, width) for rows, window in self.windows]
        return Streams(shapes, self.directory / f"{name}.stream", in_memory=self.in_memory)

    def stream_bytes(self, width: int) -> int:
        """Bytes of one such sequence."""
        return 4 * width * sum(rows * window for rows, window in self.windows)
