"""Weight files that are laid out first and filled in any order."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import TensorSpec
from apt.console.errors import BadInputError
from apt.plugins.optional.pruning.streaming.shards import Shards

SPECS = [
    TensorSpec("a", "F32", (4, 3)), TensorSpec("b", "BF16", (5,)), TensorSpec("c", "F32", (2, 2)),
    TensorSpec("d", "F32", (100,)),
]  # fmt: skip
VALUES = {
    "a": torch.arange(12.0).view(4, 3), "b": torch.arange(5).bfloat16(), "c": torch.ones(2, 2),
    "d": torch.arange(100.0),
}  # fmt: skip


@pytest.mark.parametrize(("limit", "files"), [(1000, 1), (60, 3), (1, 4)])
def test_the_library_reads_what_was_written_in_any_order(tmp_path: Path, limit: int, files: int):
    shards = Shards(tmp_path, SPECS, limit)
    shards.create()
    for name in ("d", "b", "a", "c"):
        shards.write({name: VALUES[name]})
    assert len(shards.paths) == files
    assert shards.size_bytes == sum(path.stat().st_size for path in shards.paths)
    found = {}
    for path in shards.paths:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert found.keys() == VALUES.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in VALUES.items())
    index = shards.index()
    assert (index is None) == (files == 1)
    if index is not None:
        assert set(index["weight_map"].values()) == {path.name for path in shards.paths}


def test_digests_tell_what_stands_there(tmp_path: Path):
    shards = Shards(tmp_path, SPECS, 60)
    shards.create()
    empty = shards.digest("ab")
    shards.write({"a": VALUES["a"]})
    full = shards.digest("ab")
    assert empty != full == shards.digest("ab") != shards.digest("ba")
    assert shards.are_there()
    shards.paths[1].write_bytes(b"")
    assert not shards.are_there()


def test_tensors_are_copied_from_another_checkpoint(tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.streaming.shards._PIECE", 1000)
    dense = Checkpoint.open(llama_dir)
    shards = Shards(tmp_path, [TensorSpec(t.name, t.dtype, t.shape) for t in dense.tensors.values()])
    shards.create()
    for name, tensor in dense.tensors.items():
        shards.copy(name, tensor)
    (tmp_path / "config.json").write_bytes((llama_dir / "config.json").read_bytes())
    copied = Checkpoint.open(tmp_path)
    assert all(torch.equal(copied.read(name), dense.read(name)) for name in dense.tensors)


def test_a_source_that_is_cut_short_is_told_of(tmp_path: Path, new_llama):
    path = new_llama(tmp_path / "model")
    tensors = Checkpoint.open(path).tensors
    last = max(tensors.values(), key=lambda tensor: tensor.start)
    shards = Shards(tmp_path, [TensorSpec(last.name, last.dtype, last.shape)])
    shards.create()
    os.truncate(last.path, last.start + 8)
    with pytest.raises(BadInputError, match="is cut short"):
        shards.copy(last.name, last)


def test_existing_files_are_not_written_over(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"of somebody else")
    with pytest.raises(FileExistsError):
        Shards(tmp_path, SPECS).create()
