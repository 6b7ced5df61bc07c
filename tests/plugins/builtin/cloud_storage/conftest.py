"""Models and stores for the tests of backups."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]]) -> Path:
    """Write a safetensors file by hand: name → dtype, shape, bytes."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def safetensors() -> Callable[..., Path]:
    return write_safetensors


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """All files below a directory, by relative path."""

    def read(root: Path) -> dict[str, bytes]:
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    return read


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return (tmp_path / "store").as_uri()
