"""Read the header of a GGUF file: metadata and tensor table, no weights and no library beyond the standard one.

The format is that of ggml's ``docs/gguf.md``, versions 2 and 3, little-endian. Everything that a header claims
is checked against the file before anything is allocated for it, so a hostile header costs an error message
and never memory.
"""

import mmap
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.console.errors import BadInputError, NotFoundError, UnsupportedError, shown

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
#: A header larger than this is refused; the largest real ones (250k tokens with merges) take some 20 MiB.
MAX_HEADER_BYTES: Final = 256 << 20
MAX_DIMENSIONS: Final = 4
MAX_NAME_BYTES: Final = 65535

#: Tensor types by number: name, values in a block, bytes of a block. Q8_1 and Q8_K live in memory only.
TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip

#: Metadata value types that have a fixed size: ``struct`` code and the ``array`` code for arrays of them.
_SCALARS: Final[Mapping[int, tuple[str, str]]] = {
    0: ("B", "B"), 1: ("b", "b"), 2: ("H", "H"), 3: ("h", "h"), 4: ("I", "I"), 5: ("i", "i"),
    6: ("f", "f"), 7: ("?", "B"), 10: ("Q", "Q"), 11: ("q", "q"), 12: ("d", "d"),
}  # fmt: skip
_BOOL: Final = 7
_STRING: Final = 8
_ARRAY: Final = 9


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One entry of the tensor table.

    :param type: name of the tensor type, ``"F16"``, ``"Q8_0"`` and so on.
    :param shape: outermost dimension first, as in a checkpoint (GGUF itself stores the reverse).
    :param start: offset of the data from the beginning of the file, bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def parameters(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """An opened header.

    :param metadata: numbers, booleans, strings, lists of strings or booleans, and ``array`` s of numbers.
    :param table_start: offset of the tensor table, which follows the metadata.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    size_bytes: int
    table_start: int

    @classmethod
    def open(cls, path: str | Path) -> "GGUFFile":
        """Read the header of ``path``.

        :raises NotFoundError: when there is no such file.
        :raises BadInputError: when the header is not sound, or tensors reach past the end of the file.
        :raises UnsupportedError: for GGUF version 1, big-endian files and unknown tensor types.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"no such GGUF file: {path}")
        size = path.stat().st_size
        if size < 24:
            raise BadInputError(f"{path} is not a GGUF file: only {size} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Parser(path, view, size).parse()

    @property
    def architecture(self) -> str:
        """The value of ``general.architecture``; ``""`` when it is missing."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    def field(self, key: str, default: Any = None) -> Any:
        """Return the metadata value ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def read_bytes(self, name: str) -> bytes:
        """Return the stored bytes of one tensor.

        :raises NotFoundError: when there is no tensor of that name.
        """
        if name not in self.tensors:
            raise NotFoundError(f"{self.path} has no tensor {shown(name)}")
        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            return file.read(tensor.size_bytes)


class _Parser:
    """A cursor over the header that never reads past :attr:`_end`."""

    def __init__(self, path: Path, view: mmap.mmap, size: int) -> None:
        self._path = path
        self._view = view
        self._size = size
        self._end = min(size, MAX_HEADER_BYTES)
        self._at = 0

    def parse(self) -> GGUFFile:
        if self._take(4) != MAGIC:
            raise BadInputError(f"{self._path} is not a GGUF file: it does not begin with 'GGUF'")
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian GGUF" if swapped in (2, 3) else f"GGUF version {version}"
            raise UnsupportedError(f"{self._path}: {kind} is not supported")
        n_tensors, n_fields = self._number("Q"), self._number("Q")
        # The shortest field takes 13 bytes (empty name, type, one byte), the shortest tensor entry 24.
        self._fits(n_fields, 13, "metadata fields")
        metadata: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self._string("a metadata name", MAX_NAME_BYTES)
            if key in metadata:
                raise self._bad(f"metadata {shown(key)} appears twice")
            metadata[key] = self._value(key, self._number("I"))
        table_start = self._at
        self._fits(n_tensors, 24, "tensors")
        entries = [self._entry() for _ in range(n_tensors)]
        return GGUFFile(self._path, version, metadata, self._place(entries, metadata), self._size, table_start)

    def _bad(self, what: str) -> BadInputError:
        return BadInputError(f"{self._path}: corrupted GGUF header: {what}")

    def _take(self, count: int) -> bytes:
        if count > self._end - self._at:
            what = "it is larger than 256 MiB" if self._end < self._size else "the file ends inside it"
            raise self._bad(what)
        begin, self._at = self._at, self._at + count
        return self._view[begin : self._at]

    def _fits(self, count: int, each: int, what: str) -> None:
        if count * each > self._end - self._at:
            raise self._bad(f"it claims {count} {what}, more than the file can hold")

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        length = self._number("Q")
        if length > limit:
            raise self._bad(f"{what} claims {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._bad(f"{what} is not UTF-8") from None

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string(f"metadata {shown(key)}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._bad(f"metadata {shown(key)} has the unknown type {kind}")
        return self._number(_SCALARS[kind][0])

    def _array(self, key: str) -> Any:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            self._fits(count, 8, f"strings in {shown(key)}")
            return [self._string(f"an entry of {shown(key)}") for _ in range(count)]
        if kind not in _SCALARS:
            what = "is an array of arrays" if kind == _ARRAY else f"has the unknown type {kind}"
            raise self._bad(f"metadata {shown(key)} {what}")
        code = _SCALARS[kind][1]
        width = struct.calcsize("<" + code)
        self._fits(count, width, f"values in {shown(key)}")
        raw = self._take(count * width)
        if kind == _BOOL:
            return [bool(byte) for byte in raw]
        # array codes I and L have the platform's sizes; struct's "<" has not. They agree where Python 3.11 runs.
        values = array(code)
        values.frombytes(raw)
        return values

    def _entry(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Return name, type, shape, offset within the data and size in bytes of the next tensor."""
        name = self._string("a tensor's name", MAX_NAME_BYTES)
        dimensions = self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise self._bad(f"tensor {shown(name)} has {dimensions} dimensions")
        sizes = [self._number("Q") for _ in range(dimensions)]
        kind, offset = self._number("I"), self._number("Q")
        if kind not in TENSOR_TYPES:
            raise UnsupportedError(f"{self._path}: tensor {shown(name)} has the unknown type {kind}")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        count = 1
        for size in sizes:
            count *= size
        row = sizes[0] if sizes else 1
        if row % block:
            raise self._bad(f"tensor {shown(name)} has rows of {row} values, not a multiple of {type_name}'s {block}")
        return name, type_name, tuple(reversed(sizes)), offset, count // block * block_bytes

    def _place(
        self, entries: list[tuple[str, str, tuple[int, ...], int, int]], metadata: Mapping[str, Any]
    ) -> dict[str, GGUFTensor]:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._bad(f"the alignment {shown(alignment)} is not a power of two")
        base = (self._at + alignment - 1) // alignment * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset, size in entries:
            if name in tensors:
                raise self._bad(f"tensor {shown(name)} appears twice")
            if offset % alignment:
                raise self._bad(f"tensor {shown(name)} is not aligned")
            if base + offset + size > self._size:
                raise BadInputError(
                    f"{self._path} is truncated: tensor {shown(name)} ends at byte {base + offset + size}, "
                    f"the file at {self._size}"
                )
            tensors[name] = GGUFTensor(name, kind, shape, base + offset, size)
        self._refuse_overlap(tensors)
        return tensors

    def _refuse_overlap(self, tensors: Mapping[str, GGUFTensor]) -> None:
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.size_bytes)):
            if tensor.start < end:
                raise self._bad(f"tensors {shown(before)} and {shown(tensor.name)} overlap")
            end, before = tensor.start + tensor.size_bytes, tensor.name
