"""The values of a 16-bit GGUF as an f32 GGUF with the same metadata, to tell rounding from error.

llama.cpp multiplies f16 weights with activations rounded to f16, which can turn a near tie between two tokens. On the
expanded file it computes in f32, and what then still differs lies in the file.
"""

import struct
from pathlib import Path
from typing import Final

from apt.checkpoint.gguf import DEFAULT_ALIGNMENT, GGUFFile, GGUFTensor
from apt.console.errors import UnsupportedError

_F32: Final = 0
_CHUNK_BYTES: Final = 8 << 20


def expand_to_f32(gguf: GGUFFile, target: Path) -> None:
    """Write ``gguf`` with every tensor decoded to f32.

    :raises UnsupportedError: for tensors other than f32 and f16.
    """
    tensors = sorted(gguf.tensors.values(), key=lambda tensor: tensor.start)
    with gguf.path.open("rb") as source, target.open("wb") as out:
        out.write(source.read(gguf.table_start))
        offset = 0
        for tensor in tensors:
            name = tensor.name.encode()
            out.write(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape)))
            out.write(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
            out.write(struct.pack("<IQ", _F32, offset))
            offset += _padded(4 * tensor.parameters)
        out.write(b"\0" * (_padded(out.tell()) - out.tell()))
        for tensor in tensors:
            source.seek(tensor.start)
            for begin in range(0, tensor.size_bytes, _CHUNK_BYTES):
                out.write(_decoded(source.read(min(_CHUNK_BYTES, tensor.size_bytes - begin)), tensor))
            out.write(b"\0" * (_padded(out.tell()) - out.tell()))


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _decoded(raw: bytes, tensor: GGUFTensor) -> bytes:
    import numpy as np

    if tensor.type == "F32":
        return raw
    if tensor.type == "F16":
        return np.frombuffer(raw, "<f2").astype("<f4").tobytes()
    raise UnsupportedError(f"tensor {tensor.name!r} of type {tensor.type} cannot be expanded")
