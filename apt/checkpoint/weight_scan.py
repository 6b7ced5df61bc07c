"""One streaming pass over a checkpoint's weights: non-finite values, dead rows, range, and equal tensors.

Works on the raw words. The bit patterns of positive floats order as integers do, so the largest *signed* word is the
largest positive value and the largest *unsigned* word the negative one of the largest magnitude: two reductions that
numpy runs as vector code tell range and finiteness together (an exponent of all ones, which marks infinity and NaN,
is larger than every finite pattern). Blocks are read, not mapped, so memory stays at some MB.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.safetensors_header import TensorInfo
from apt.console.errors import BadInputError
from apt.console.progress import progress

if TYPE_CHECKING:
    import numpy as np

#: Bytes read at a time; whole rows where they fit. A block stays in the processor's cache for all that is done to it.
BLOCK_BYTES: Final = 1 << 20

#: One value in this many is sampled for the norm and the fingerprint; a prime, so that it walks through the columns.
#: Small tensors are sampled more densely, up to every value.
SAMPLE_STEP: Final = 127


@dataclass(frozen=True, slots=True)
class _Word:
    """How a dtype's values lie in words: bytes, mask of the magnitude, smallest magnitude that is not finite."""

    size: int
    mask: int
    limit: int


_WORDS: Final = {
    "BF16": _Word(2, 0x7FFF, 0x7F80),
    "F16": _Word(2, 0x7FFF, 0x7C00),
    "F32": _Word(4, 0x7FFF_FFFF, 0x7F80_0000),
    "F64": _Word(8, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F8_E4M3": _Word(1, 0x7F, 0x7F),  # the "fn" variant: no infinities, one NaN
    "F8_E5M2": _Word(1, 0x7F, 0x7C),
}


@dataclass(frozen=True, slots=True)
class TensorScan:
    """What one tensor's values are like.

    :param non_finite: number of NaNs and infinities; ``first_non_finite`` is the index of the first in row-major order.
    :param largest: largest finite magnitude.
    :param rms: root mean square of the finite values of a sample (one in 127 of a large tensor, all of a small one).
    :param quantiles: 10 %, 50 % and 90 % quantile of the finite magnitudes in a sample of the first block.
    :param zero_rows: rows (of a matrix) or elements (of a vector) that are all zero.
    :param rows: number of rows, or of elements of a vector.
    :param fingerprint: equal for equal bytes; tensors with unequal fingerprints differ.
    """

    name: str
    non_finite: int
    first_non_finite: int | None
    largest: float
    rms: float
    quantiles: tuple[float, float, float]
    zero_rows: int
    rows: int
    fingerprint: tuple[int, int]

    @property
    def all_zero(self) -> bool:
        """Whether the tensor holds nothing but zeros."""
        return self.rows > 0 and self.zero_rows == self.rows


def scan_weights(checkpoint: Checkpoint) -> Iterator[TensorScan]:
    """Return a scan of each floating-point tensor, in the order of the files.

    :raises BadInputError: when a file has shrunk since its header was read.
    """
    return scan_tensors(checkpoint.tensors.values())


def scan_tensors(tensors: Iterable[TensorInfo]) -> Iterator[TensorScan]:
    """The same for any tensors that lie in files as safetensors has them; other dtypes are left out."""
    tensors = sorted(tensors, key=lambda t: (t.path, t.start))
    largest = max((t.size_bytes for t in tensors), default=0)
    buffer = memoryview(bytearray(min(BLOCK_BYTES, largest)))
    stream: BinaryIO | None = None
    path: Path | None = None
    try:
        with progress("scanning weights", sum(t.size_bytes for t in tensors), "bytes") as bar:
            for tensor in tensors:
                if tensor.dtype in _WORDS and tensor.size_bytes:
                    if stream is None or path != tensor.path:
                        if stream is not None:
                            stream.close()
                        stream, path = tensor.path.open("rb", buffering=0), tensor.path
                    yield _scan(tensor, stream, buffer)
                bar.advance(tensor.size_bytes)
    finally:
        if stream is not None:
            stream.close()


def _scan(tensor: TensorInfo, stream: BinaryIO, buffer: memoryview) -> TensorScan:
    import numpy as np

    word = _WORDS[tensor.dtype]
    signed, unsigned = np.dtype(f"<i{word.size}"), np.dtype(f"<u{word.size}")
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    non_finite, first, largest, zero_rows, at, mixed = 0, None, 0, 0, 0, 0
    step = min(SAMPLE_STEP, 1 + tensor.elements // 4096)
    squares, sampled, quantiles = 0.0, 0, (0.0, 0.0, 0.0)
    row_is_zero = True  # of a row longer than a block, as far as it was read
    for block in _blocks(tensor, stream, buffer, word.size * width):
        words = np.frombuffer(block, unsigned)
        positive, negative = int(words.view(signed).max()), int(words.max()) & word.mask
        top = max(positive, negative)  # all of one sign: the other figure repeats it or is the smallest of them
        if top >= word.limit:
            bad = (words & unsigned.type(word.mask)) >= word.limit
            if first is None:
                first = at + int(bad.argmax())
            non_finite += int(np.count_nonzero(bad))
            top = int((words & unsigned.type(word.mask))[~bad].max(initial=0))
        largest = max(largest, top)
        if len(words) % width == 0:
            zero_rows += _zero_rows(words.reshape(-1, width), word.mask)
        else:  # a piece of one row
            row_is_zero = row_is_zero and not (words & unsigned.type(word.mask)).any()
            if (at + len(words)) % width == 0:
                zero_rows, row_is_zero = zero_rows + row_is_zero, True
        sample = np.ascontiguousarray(words[::step])
        mixed = zlib.crc32(sample.tobytes(), zlib.crc32(f"{len(words)} {positive} {negative}".encode(), mixed))
        values = to_floats(sample, tensor.dtype)
        finite = values if first is None else values[np.isfinite(values)]
        if not at:
            quantiles = _quantiles(finite)
        with np.errstate(over="ignore"):
            squares, sampled = squares + float(np.dot(finite, finite)), sampled + len(finite)
        at += len(words)
    return TensorScan(
        name=tensor.name,
        non_finite=non_finite,
        first_non_finite=first,
        largest=float(to_floats(np.array([largest], unsigned), tensor.dtype)[0]),
        quantiles=quantiles,
        rms=(squares / sampled) ** 0.5 if sampled else 0.0,
        zero_rows=zero_rows,
        rows=at // width,
        fingerprint=(largest, mixed),
    )


def zero_rows(tensor: TensorInfo) -> list[int]:
    """Return the indices of a matrix's rows that are all zero.

    :raises BadInputError: when the file has shrunk since its header was read.
    """
    import numpy as np

    word = _WORDS[tensor.dtype]
    width = tensor.shape[-1]
    found: list[int] = []
    at = 0
    with tensor.path.open("rb", buffering=0) as stream:
        buffer = memoryview(bytearray(max(BLOCK_BYTES, word.size * width)))
        for block in _blocks(tensor, stream, buffer, word.size * width):
            rows = np.frombuffer(block, f"<u{word.size}").reshape(-1, width) & np.dtype(f"<u{word.size}").type(
                word.mask
            )
            found += (at + np.flatnonzero(~rows.any(1))).tolist()
            at += len(rows)
    return found


def _quantiles(values: "np.ndarray[Any, Any]") -> tuple[float, float, float]:
    import numpy as np

    ordered = np.sort(np.abs(values))
    last = len(ordered) - 1
    low, middle, high = (float(ordered[last * k // 10]) if last >= 0 else 0.0 for k in (1, 5, 9))
    return low, middle, high


def _zero_rows(rows: "np.ndarray[Any, Any]", mask: int) -> int:
    """Count rows of zeros; only rows that begin and end with a zero are looked at whole.

    :param rows: words ``[rows, width]``.
    """
    import numpy as np

    mask = rows.dtype.type(mask)
    candidates = np.flatnonzero((rows[:, 0] & mask) == 0)
    if rows.shape[1] == 1 or not len(candidates):
        return len(candidates)
    candidates = candidates[(rows[candidates, -1] & mask) == 0]
    return int(sum(not (rows[i] & mask).any() for i in candidates))


def _blocks(tensor: TensorInfo, stream: BinaryIO, buffer: memoryview, row_bytes: int) -> Iterator[memoryview]:
    """Read a tensor into a buffer, which the next block overwrites: whole rows, or pieces of a row that is longer."""
    stream.seek(tensor.start)
    left, row_left = tensor.size_bytes, row_bytes
    rows_step = len(buffer) // row_bytes * row_bytes
    while left:
        n = min(rows_step, left) if rows_step else min(len(buffer) // 8 * 8, row_left)
        block = buffer[:n]
        filled = 0
        while filled < n:
            got = stream.readinto(block[filled:])  # type: ignore[attr-defined]
            if not got:
                raise BadInputError(f"{tensor.path}: tensor {tensor.name!r} is cut short")
            filled += got
        yield block
        left -= n
        row_left = row_left - n or row_bytes


def to_floats(words: "np.ndarray[Any, Any]", dtype: str) -> "np.ndarray[Any, Any]":
    """Turn words of a safetensors dtype into the float64 numbers that they stand for.

    :param words: unsigned words of the dtype's size.
    """
    import numpy as np

    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "F8_E5M2":  # the upper half of an fp16
        return (words.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    if dtype == "F8_E4M3":
        exponent, fraction = (words >> 3) & 15, (words & 7).astype(np.float64)
        normal = np.ldexp(1 + fraction / 8, exponent.astype(np.int32) - 7)
        value = np.where(exponent > 0, normal, np.ldexp(fraction, -9))
        value = np.where((words & 0x7F) == 0x7F, np.nan, value)
        return np.where(words & 0x80, -value, value)
    return words.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).astype(np.float64)
