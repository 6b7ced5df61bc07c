"""How a file is cut into pieces that are stored once each.

A safetensors or GGUF file is cut at its tensors, so that a second version costs the tensors that changed, whatever
else was inserted, renamed or moved to another shard. A tensor larger than :data:`MAX_PIECE_BYTES` is cut at row
boundaries: rows appended to an embedding leave the blocks before them as they were. Any other file is cut into
blocks of fixed size.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.safetensors_header import DTYPE_BITS, TensorInfo, read_header

#: The largest piece; also the most of a file that is in memory at a time.
MAX_PIECE_BYTES: Final = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of a file; ``tensor`` is the tensor that it belongs to, empty for headers and other files."""

    start: int
    size_bytes: int
    tensor: str = ""


def cut(path: Path, size_bytes: int) -> list[Piece]:
    """Return the pieces of a file, in order and without gaps.

    :raises BadInputError: for a safetensors or GGUF file whose header does not describe its data.
    """
    if path.suffix == ".safetensors":
        return _cut_safetensors(path, size_bytes)
    if path.suffix == ".gguf":
        return _cut_gguf(path, size_bytes)
    return _blocks(0, size_bytes, MAX_PIECE_BYTES, "")


def tensor_at(path: Path, offset: int) -> str:
    """Return the tensor that owns the byte at ``offset`` of a file whose header is sound; empty when none does."""
    size = path.stat().st_size
    return next((p.tensor for p in cut(path, size) if p.start <= offset < p.start + p.size_bytes), "")


def _cut_safetensors(path: Path, size_bytes: int) -> list[Piece]:
    tensors = sorted(read_header(path)[0].values(), key=lambda t: (t.start, t.size_bytes))
    filled = [t for t in tensors if t.size_bytes]
    pieces = _blocks(0, filled[0].start if filled else size_bytes, MAX_PIECE_BYTES, "")
    for tensor in filled:
        pieces += _blocks(tensor.start, tensor.size_bytes, _rows_block(tensor), tensor.name)
    return pieces


def _rows_block(tensor: TensorInfo) -> int:
    """Bytes of as many whole rows as fit into a piece; a row that does not fit is cut anywhere."""
    row_bits = math.prod(tensor.shape[1:]) * DTYPE_BITS[tensor.dtype] if len(tensor.shape) > 1 else 0
    row_bytes = row_bits // 8
    if row_bits % 8 or not 0 < row_bytes <= MAX_PIECE_BYTES:
        return MAX_PIECE_BYTES
    return MAX_PIECE_BYTES // row_bytes * row_bytes


def _cut_gguf(path: Path, size_bytes: int) -> list[Piece]:
    """Cut at the tensors' starts; the padding after a tensor stays with it."""
    from apt.checkpoint.gguf import GGUFFile

    tensors = sorted((t for t in GGUFFile.open(path).tensors.values() if t.size_bytes), key=lambda t: t.start)
    starts = [t.start for t in tensors]
    pieces = _blocks(0, starts[0] if starts else size_bytes, MAX_PIECE_BYTES, "")
    for tensor, end in zip(tensors, [*starts[1:], size_bytes], strict=True):
        pieces += _blocks(tensor.start, end - tensor.start, MAX_PIECE_BYTES, tensor.name)
    return pieces


def _blocks(start: int, size_bytes: int, block_bytes: int, tensor: str) -> list[Piece]:
    end = start + size_bytes
    return [Piece(at, min(block_bytes, end - at), tensor) for at in range(start, end, block_bytes)]
