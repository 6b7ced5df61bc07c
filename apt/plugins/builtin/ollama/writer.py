"""Write a GGUF: header by the ``gguf`` package, tensor data streamed behind it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.gguf import DEFAULT_ALIGNMENT
from apt.plugins.builtin.ollama.mapping import PlannedTensor
from apt.plugins.builtin.ollama.tensors import TensorType

#: ``general.file_type``, llama.cpp's number for "mostly" that type.
FILE_TYPES: Final[Mapping[TensorType, int]] = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of the file with the type it is stored in.

    :param shape: outermost dimension first.
    :param source: where its values come from; absent for one that follows from the config.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    size_bytes: int
    source: PlannedTensor | None = None


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    file_type: TensorType,
    entries: Sequence[FileTensor],
    data: Iterable[Iterable[bytes]],
) -> None:
    """Write one GGUF file.

    :param architecture: llama.cpp's name of it.
    :param metadata: key → bool, int (written as u32), float (f32), string, or list of one kind of these; integers in
        lists are written as i32.
    :param entries: the tensor table.
    :param data: for each entry, its bytes in pieces, in the same order.
    """
    _write_header(path, architecture, metadata, file_type, entries)
    with path.open("ab") as stream:
        _pad(stream, stream.tell())
        for entry, pieces in zip(entries, data, strict=True):
            written = sum(stream.write(piece) for piece in pieces)
            if written != entry.size_bytes:
                raise AssertionError(f"{entry.name}: wrote {written} bytes, announced {entry.size_bytes}")
            _pad(stream, written)


def _pad(stream: Any, length: int) -> None:
    stream.write(b"\0" * (-length % DEFAULT_ALIGNMENT))


def _write_header(
    path: Path, architecture: str, metadata: Mapping[str, Any], file_type: TensorType, entries: Sequence[FileTensor]
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer: Any = GGUFWriter(None, architecture)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    for key, value in metadata.items():
        _add(writer, key, value)
    for entry in entries:
        kind = GGMLQuantizationType[entry.type]
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size_bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
