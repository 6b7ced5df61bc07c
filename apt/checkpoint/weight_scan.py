"""One streaming pass over a checkpoint's weights: non-finite values, dead rows, range, and equal tensors.

Works on the raw 16- or 32-bit words: an exponent of all ones is an infinity or a NaN, so the largest magnitude word
of a row tells both its range and whether it is finite. Blocks are read, not mapped, so memory stays at some MB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.safetensors_header import TensorInfo
from apt.console.errors import BadInputError
from apt.console.progress import progress

#: Bytes read at a time, rounded to whole rows.
BLOCK_BYTES: Final = 2 << 20

#: dtype → numpy word, mask of the magnitude, smallest magnitude word that is not finite.
_WORDS: Final = {
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}


@dataclass(frozen=True, slots=True)
class TensorScan:
    """What one tensor's values are like.

    :param non_finite: number of NaNs and infinities; ``first_non_finite`` is the index of the first in row-major order.
    :param largest: largest finite magnitude.
    :param zero_rows: rows (of a matrix) or elements (of a vector) that are all zero.
    :param rows: number of rows, or of elements of a vector.
    :param fingerprint: equal for equal bytes; tensors with unequal fingerprints differ.
    """

    name: str
    non_finite: int
    first_non_finite: int | None
    largest: float
    zero_rows: int
    rows: int
    fingerprint: tuple[int, int]

    @property
    def all_zero(self) -> bool:
        """Whether the tensor holds nothing but zeros."""
        return self.rows > 0 and self.zero_rows == self.rows


def scan_weights(checkpoint: Checkpoint) -> Iterator[TensorScan]:
    """Yield a scan of each floating-point tensor, in the order of the files.

    :raises BadInputError: when a file has shrunk since its header was read.
    """
    tensors = sorted(checkpoint.tensors.values(), key=lambda t: (t.path, t.start))
    with progress("scanning weights", sum(t.size_bytes for t in tensors), "bytes") as bar:
        for tensor in tensors:
            if tensor.dtype in _WORDS and tensor.size_bytes:
                yield _scan(tensor)
            bar.advance(tensor.size_bytes)


def _scan(tensor: TensorInfo) -> TensorScan:
    import numpy as np

    word, mask, limit = _WORDS[tensor.dtype]
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    non_finite, first, largest, zero_rows, at = 0, None, 0, 0, 0
    added, mixed = 0, 0
    for block in _blocks(tensor, np.dtype(word).itemsize * width):
        words = np.frombuffer(block, word)
        magnitudes = words & np.array(mask, word)
        by_row = magnitudes.reshape(-1, width).max(axis=1) if width > 1 else magnitudes
        top = int(by_row.max())
        zero_rows += int(len(by_row) - np.count_nonzero(by_row))
        if top >= limit:
            bad = magnitudes >= limit
            if first is None:
                first = at + int(bad.argmax())
            non_finite += int(np.count_nonzero(bad))
            top = int(magnitudes[~bad].max(initial=0))
        largest = max(largest, top)
        added = (added + int(words.sum(dtype=np.uint64))) & 0xFFFF_FFFF_FFFF_FFFF
        mixed = hash((mixed, int(words[0]), int(words[-1]), len(words), added))
        at += len(words)
    return TensorScan(
        name=tensor.name,
        non_finite=non_finite,
        first_non_finite=first,
        largest=_value(largest, tensor.dtype),
        zero_rows=zero_rows,
        rows=at // width,
        fingerprint=(added, mixed),
    )


def _blocks(tensor: TensorInfo, row_bytes: int) -> Iterator[memoryview]:
    """Read a tensor in blocks of whole rows into one buffer, which the next block overwrites."""
    step = max(row_bytes, BLOCK_BYTES // row_bytes * row_bytes)
    buffer = memoryview(bytearray(min(step, tensor.size_bytes)))
    left = tensor.size_bytes
    with tensor.path.open("rb", buffering=0) as stream:
        stream.seek(tensor.start)
        while left:
            block = buffer[: min(step, left)]
            filled = 0
            while filled < len(block):
                n = stream.readinto(block[filled:])
                if not n:
                    raise BadInputError(f"{tensor.path}: tensor {tensor.name!r} is cut short")
                filled += n
            yield block
            left -= len(block)


def _value(magnitude: int, dtype: str) -> float:
    """Turn a magnitude word into the number it stands for."""
    import numpy as np

    if dtype == "BF16":
        return float(np.array(magnitude << 16, np.uint32).view(np.float32))
    word = {"F16": (np.uint16, np.float16), "F32": (np.uint32, np.float32), "F64": (np.uint64, np.float64)}[dtype]
    return float(np.array(magnitude, word[0]).view(word[1]))
