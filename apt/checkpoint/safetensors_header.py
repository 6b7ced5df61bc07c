"""Reading the header of a safetensors file without reading its tensors.

The format (huggingface/safetensors, README): 8 bytes little-endian header length, a JSON object, then the data.
The header must describe the data without holes or overlaps; the safetensors library refuses such files too.
"""

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.console.errors import BadInputError, shown

#: The library's own limit: a longer header is hostile or corrupted.
MAX_HEADER_BYTES: Final = 100_000_000

#: Bits of one element, by safetensors dtype.
DTYPE_BITS: Final = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: ``start`` is the absolute offset in the file ``path``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` that refuses a key given twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {shown(key)} occurs twice")
        result[key] = value
    return result


def refuse_special(path: Path) -> None:
    """Refuse what is there and no regular file: a pipe would be waited on for ever.

    :raises BadInputError: for a directory, a pipe, a socket, a device.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadInputError(f"{path} is not a regular file", hint=_RELOAD)


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    :raises BadInputError: when the file is truncated, corrupted, or its header does not describe its data exactly.
    """
    refuse_special(path)
    with path.open("rb") as stream:
        file_size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise BadInputError(f"{path}: too short for a safetensors file ({file_size} bytes)", hint=_RELOAD)
        length = int.from_bytes(prefix, "little")
        if length > min(MAX_HEADER_BYTES, file_size - 8):
            raise BadInputError(
                f"{path}: header length {length} does not fit in the file ({file_size} bytes)", hint=_RELOAD
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: corrupted safetensors header: {error}", hint=_RELOAD) from None
    if not isinstance(header, dict):
        raise BadInputError(f"{path}: corrupted safetensors header: not an object", hint=_RELOAD)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadInputError(f"{path}: corrupted safetensors header: __metadata__ is not texts by name", hint=_RELOAD)
    try:  # JSON's escapes can name half a pair, which is no text
        "".join((*header, *metadata, *metadata.values())).encode()
    except UnicodeEncodeError:
        raise BadInputError(f"{path}: corrupted safetensors header: a name is not Unicode", hint=_RELOAD) from None
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(path, list(tensors.values()), 8 + length, file_size)
    return tensors, metadata


_RELOAD: Final = "download or copy the file again"


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in [*shape, begin, end])
        if not whole or not isinstance(shape, list):
            raise ValueError("sizes are not whole numbers")
        bits = DTYPE_BITS[dtype]
    except KeyError as error:
        raise BadInputError(f"{path}: tensor {shown(name)}: {shown(error.args[0])} is missing or unknown") from None
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{path}: tensor {shown(name)}: {error}") from None
    if end - begin != (math.prod(shape) * bits + 7) // 8:
        raise BadInputError(
            f"{path}: tensor {shown(name)}: shape {shown(shape)} of {dtype} does not take {shown(end - begin)} bytes",
            hint=_RELOAD,
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _check_layout(path: Path, tensors: list[TensorInfo], data_start: int, file_size: int) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.size_bytes)):
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise BadInputError(f"{path}: tensor {shown(tensor.name)} {fault}", hint=_RELOAD)
        position += tensor.size_bytes
    if position != file_size:
        fault = "truncated" if position > file_size else "followed by bytes that no tensor owns"
        raise BadInputError(
            f"{path}: {fault}: the header describes {position} bytes, the file has {file_size}", hint=_RELOAD
        )
