"""The header reader against files of the gguf package, and against hostile headers."""

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apt.checkpoint.gguf import TENSOR_TYPES, GGUFFile
from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def entry(name: str, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def header(fields: list[bytes], entries: list[bytes], data: bytes = b"", *, version: int = 3) -> bytes:
    raw = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(fields)) + b"".join(fields) + b"".join(entries)
    return raw + b"\0" * (-len(raw) % 32) + data


ARCHITECTURE = field("general.architecture", 8, text("llama"))
SOUND = header(
    [
        ARCHITECTURE,
        field("llama.block_count", 4, struct.pack("<I", 2)),
        field("a.list", 9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, -2, 3)),
        field("a.strings", 9, struct.pack("<IQ", 8, 2) + text("x") + text("好")),
        field("a.flags", 9, struct.pack("<IQ", 7, 2) + b"\1\0"),
        field("a.float", 6, struct.pack("<f", 0.5)),
    ],
    [entry("one", (32, 2), 8, 0), entry("two", (3,), 0, 96)],
    bytes(96 + 12),
)


@pytest.fixture
def write(tmp_path: Path):
    def make(raw: bytes) -> Path:
        path = tmp_path / "x.gguf"
        path.write_bytes(raw)
        return path

    return make


def test_reads_metadata_and_table(write) -> None:
    file = GGUFFile.open(write(SOUND))
    assert file.architecture == "llama"
    assert file.field("block_count") == 2
    assert file.metadata["a.list"].tolist() == [1, -2, 3]
    assert file.metadata["a.strings"] == ["x", "好"]
    assert file.metadata["a.flags"] == [True, False]
    assert file.metadata["a.float"] == 0.5
    one, two = file.tensors["one"], file.tensors["two"]
    assert (one.type, one.shape, one.size_bytes) == ("Q8_0", (2, 32), 68)
    assert two.start - one.start == 96
    assert file.parameters == 67
    assert len(file.read_bytes("one")) == 68
    with pytest.raises(NotFoundError):
        file.read_bytes("three")


def test_types_are_those_of_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf.constants", reason="the plugin's dependency gguf is not installed")
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    in_memory_only = {9, 15}  # Q8_1, Q8_K
    assert dict(TENSOR_TYPES) == {number: value for number, value in theirs.items() if number not in in_memory_only}


def test_equals_the_gguf_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the plugin's dependency gguf is not installed")
    import numpy as np

    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_bool("a.bool", True)
    writer.add_float64("a.double", 1e300)
    writer.add_uint64("a.long", 2**63)
    writer.add_array("a.floats", [0.5, -1.0])
    writer.add_tensor("w", np.arange(12, dtype=np.float16).reshape(3, 4))
    writer.add_tensor("b", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile.open(path)
    assert file.metadata["a.bool"] is True
    assert file.metadata["a.double"] == 1e300
    assert file.metadata["a.long"] == 2**63
    assert file.metadata["a.floats"].tolist() == [0.5, -1.0]
    for tensor in gguf.GGUFReader(path).tensors:
        own = file.tensors[tensor.name]
        assert own.start == tensor.data_offset
        assert own.size_bytes == tensor.n_bytes
        assert own.shape == tuple(reversed(tensor.shape.tolist()))
        assert file.read_bytes(tensor.name) == tensor.data.tobytes()


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        (b"", BadInputError, "not a GGUF"),
        (b"NOPE" + bytes(60), BadInputError, "begin with"),
        (header([], [], version=1), UnsupportedError, "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedError, "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), BadInputError, "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), BadInputError, "claims"),
        (header([field("k", 8, struct.pack("<Q", 2**62))], []), BadInputError, "claims"),
        (header([field("k", 9, struct.pack("<IQ", 4, 2**61))], []), BadInputError, "claims"),
        (header([field("k", 9, struct.pack("<IQ", 8, 2**61))], []), BadInputError, "claims"),
        (header([field("k", 9, struct.pack("<IQ", 9, 1))], []), BadInputError, "array of arrays"),
        (header([field("k", 77, b"")], []), BadInputError, "unknown type 77"),
        (header([text("\0") + struct.pack("<I", 99)], []), BadInputError, "unknown type"),
        (header([ARCHITECTURE, ARCHITECTURE], []), BadInputError, "twice"),
        (header([], [entry("t", (4,), 0, 0), entry("t", (4,), 0, 32)], bytes(64)), BadInputError, "twice"),
        (header([], [entry("t", (16,), 0, 0), entry("u", (4,), 0, 32)], bytes(64)), BadInputError, "overlap"),
        (header([], [entry("t", (4,), 0, 4)], bytes(64)), BadInputError, "aligned"),
        (header([], [entry("t", (1,) * 5, 0, 0)], bytes(64)), BadInputError, "5 dimensions"),
        (header([], [entry("t", (33,), 8, 0)], bytes(64)), BadInputError, "multiple"),
        (header([], [entry("t", (4,), 999, 0)], bytes(64)), UnsupportedError, "type 999"),
        (header([], [entry("t", (2**40, 2**40), 0, 0)], bytes(64)), BadInputError, "truncated"),
        (header([field("general.alignment", 4, struct.pack("<I", 0))], []), BadInputError, "power of two"),
        (header([text("k")[:-1] + b"\xff" + struct.pack("<I", 0) + b"\0"], []), BadInputError, "UTF-8"),
        (SOUND[:-40], BadInputError, "truncated"),
        (SOUND[:70], BadInputError, "GGUF header"),
    ],
)
def test_hostile_headers_are_refused(write, raw: bytes, kind: type[AptError], words: str) -> None:
    with pytest.raises(kind, match=words):
        GGUFFile.open(write(raw))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(NotFoundError):
        GGUFFile.open(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, len(SOUND)),
    changes=st.lists(
        st.tuples(st.integers(0, len(SOUND) - 9), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
)
def test_a_mutated_header_opens_or_is_refused_cheaply(
    tmp_path: Path, cut: int, changes: list[tuple[int, bytes]]
) -> None:
    raw = bytearray(SOUND)
    for at, value in changes:
        raw[at : at + len(value)] = value
    path = tmp_path / "mutated.gguf"
    path.write_bytes(raw if cut % 3 else raw[:cut])
    tracemalloc.start()
    try:
        file = GGUFFile.open(path)
        assert all(t.start + t.size_bytes <= file.size_bytes for t in file.tensors.values())
    except AptError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
