"""Pickles by their opcodes: what torch writes is counted, what would run is named, what is broken is refused."""

import contextlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.checkpoint.pickle_scan import scan_pickle
from apt.console.errors import BadInputError


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_shapes_and_dtypes_are_those_that_were_saved(tmp_path: Path, legacy: bool, protocol: int) -> None:
    state: dict[str, Any] = {
        "层.weight": torch.zeros(3, 4, dtype=torch.float16),
        "scalar": torch.tensor(2.0),
        "nested": {"list": [torch.zeros(2, dtype=torch.int64)]},
        "parameter": torch.nn.Parameter(torch.zeros(5, dtype=torch.bfloat16)),
        "steps": 7,
    }
    path = tmp_path / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    found = scan_pickle(path)
    assert {t.name: (t.dtype, t.shape) for t in found.tensors} == {
        "层.weight": ("F16", (3, 4)), "scalar": ("F32", ()), "nested.list.0": ("I64", (2,)),
        "parameter": ("BF16", (5,)),
    }  # fmt: skip
    assert found.container == ("legacy" if legacy else "zip") and found.complete
    assert found.unexpected_imports == () and "REDUCE" in found.running_opcodes


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    weight = torch.zeros(4, 2)
    torch.save({"embedding": weight, "head": weight, "other": torch.zeros(4, 2)}, tmp_path / "x.bin")
    assert [t.name for t in scan_pickle(tmp_path / "x.bin").tensors] == ["embedding", "other"]


class Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch owned",)


def test_what_would_run_is_named_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        Path("x.bin").write_bytes(pickle.dumps({"a": Runs()}, protocol))
        assert scan_pickle(Path("x.bin")).unexpected_imports in (("posix.system",), ("nt.system",))
    with zipfile.ZipFile("y.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"cbuiltins\neval\n(S'1'\ntR.")
    assert scan_pickle(Path("y.bin")).unexpected_imports == ("builtins.eval",)
    with zipfile.ZipFile("z.bin", "w") as archive:
        archive.writestr("b/version", b"3")
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("b/data.pkl", b"cbuiltins\neval\n(S'1'\ntR.")  # the one that torch takes
    assert scan_pickle(Path("z.bin")).unexpected_imports == ("builtins.eval",)
    assert not Path("owned").exists()


def test_hostile_shapes_and_shared_lists_cost_nothing(tmp_path: Path) -> None:
    laughs: list[Any] = [torch.zeros(1)]
    for _ in range(40):
        laughs = [laughs] * 10
    torch.save(laughs, tmp_path / "x.bin")
    assert len(scan_pickle(tmp_path / "x.bin").tensors) == 1
    key = b"X\x10\x00\x00\x00" + b"k" * 16  # a dict in a dict in a dict: names grow with the depth
    (tmp_path / "deep.bin").write_bytes(b"\x80\x02" + (b"}" + key) * 200_000 + b"}" + b"s" * 200_000 + b".")
    assert scan_pickle(tmp_path / "deep.bin").tensors == ()


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x80\x02.", b"\x80\x02}q\x00", b"PK\x03\x04", b"(((.", b"0.", b"\x85."]
)
def test_what_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="not a") as caught:
        scan_pickle(path)
    assert str(path) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_never_escape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    state = {"a": torch.zeros(2, 3), "b": {"c": [torch.zeros(4)]}, "d": 1.5}
    path = tmp_path_factory.mktemp("flip") / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(BadInputError):
        scan_pickle(path)
