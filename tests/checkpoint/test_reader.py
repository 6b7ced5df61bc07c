"""Headers against the safetensors library; hostile and broken checkpoints; loading."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apt.checkpoint.reader import Checkpoint, member, read_json
from apt.checkpoint.safetensors_header import read_header
from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError


@pytest.fixture
def copy(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "copy"))


def shard(directory: Path) -> dict[str, str]:
    """Cut the weights of a checkpoint in two shards with an index; returns the weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    half = len(tensors) // 2
    weight_map = {}
    for i, part in enumerate((list(tensors)[:half], list(tensors)[half:])):
        name = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_table_equals_the_library(llama_dir: Path) -> None:
    checkpoint = Checkpoint.open(llama_dir)
    with safe_open(llama_dir / "model.safetensors", "pt") as library:
        assert set(checkpoint.tensors) == set(library.keys())
        for name in library.keys():  # noqa: SIM118 - safe_open is no mapping
            expected = library.get_tensor(name)
            assert checkpoint.tensors[name].shape == tuple(expected.shape)
            assert torch.equal(checkpoint.read(name), expected)
    model = checkpoint.load()
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())
    assert checkpoint.size_bytes == (llama_dir / "model.safetensors").stat().st_size


def test_shards_give_the_same_table(copy: Path, llama_dir: Path) -> None:
    shard(copy)
    whole, parts = Checkpoint.open(llama_dir), Checkpoint.open(copy)
    assert set(parts.tensors) == set(whole.tensors)
    assert all(torch.equal(parts.read(n), whole.read(n)) for n in whole.tensors)
    assert len(parts.weight_files) == 2


def test_digest_follows_the_contents(copy: Path, llama_dir: Path) -> None:
    before = Checkpoint.open(copy).digest()
    assert before == Checkpoint.open(llama_dir).digest()
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    assert Checkpoint.open(copy).digest() != before


@pytest.mark.parametrize("escape", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x\0y", "a\\b"])
def test_index_that_points_outside_is_refused(copy: Path, escape: str) -> None:
    weight_map = shard(copy)
    weight_map[next(iter(weight_map))] = escape
    write_index(copy, weight_map)
    with pytest.raises(BadInputError, match="leaves the directory"):
        Checkpoint.open(copy)


def test_link_outside_is_refused_but_for_the_hub_cache(copy: Path, tmp_path: Path) -> None:
    outside = shutil.move(copy / "model.safetensors", tmp_path / "elsewhere.safetensors")
    (copy / "model.safetensors").symlink_to(outside)
    with pytest.raises(BadInputError, match="outside the model"):
        Checkpoint.open(copy)
    cache = tmp_path / "hub" / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    shutil.move(outside, cache / "blobs" / "0")
    snapshot = Path(shutil.move(copy, cache / "snapshots" / "rev"))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/0")
    assert Checkpoint.open(snapshot).parameters > 0


def test_link_to_itself_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(BadInputError, match="cannot be followed"):
        Checkpoint.open(copy)


def test_member_accepts_plain_names(tmp_path: Path) -> None:
    assert member(tmp_path, "模型.safetensors") == tmp_path / "模型.safetensors"


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_refused(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "does not take"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "missing or unknown"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "hole"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
          "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "overlaps"),
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, "does not take"),
        ({"a": 3}, "tensor 'a'"),
        ([], "not an object"),
        ({}, "no tensor owns"),
    ],
)  # fmt: skip
def test_header_faults_are_named(tmp_path: Path, header: object, fault: str) -> None:
    raw = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 4)
    with pytest.raises(BadInputError, match=fault):
        read_header(path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    raw = f"{{{entry},{entry}}}".encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 4)
    with pytest.raises(BadInputError, match="occurs twice"):
        read_header(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_header_bytes_never_give_a_traceback(llama_dir: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray((llama_dir / "model.safetensors").read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    for position in data.draw(st.lists(st.integers(0, header_end - 1), min_size=1, max_size=4)):
        raw[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    try:
        tensors, _ = read_header(path)
    except BadInputError:
        return
    assert sum(t.size_bytes for t in tensors.values()) <= len(raw)


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def not_json(directory: Path) -> None:
    (directory / "config.json").write_text("{'a': 1}")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (remove("config.json"), NotFoundError, "no config.json"),
        (remove("model.safetensors"), NotFoundError, r"no model\.safetensors"),
        (pickle_only, UnsupportedError, "huggingface import"),
        (not_json, BadInputError, "not valid JSON"),
    ],
)
def test_broken_directories(copy: Path, damage: Callable[[Path], None], error: type[AptError], words: str) -> None:
    damage(copy)
    with pytest.raises(error, match=words):
        Checkpoint.open(copy)


def test_missing_and_unexpected_tensors_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    extra = {**tensors, "model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}
    save_file(extra, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInputError, match="unexpected keys"):
        Checkpoint.open(copy).load()
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=r"missing keys, the first 'model\.layers\.1\.mlp\.up_proj"):
        Checkpoint.open(copy).load()


def test_mismatched_shape_is_refused(copy: Path) -> None:
    config = read_json(copy / "config.json")
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(BadInputError, match=r"9 mismatched keys, the first 'model\.layers\.0\.mlp\.down_proj\.weight'"):
        Checkpoint.open(copy).load()


def test_lone_file_opens(llama_dir: Path) -> None:
    checkpoint = Checkpoint.open(llama_dir / "model.safetensors")
    assert checkpoint.config["model_type"] == "llama"


def test_tokenizer(llama_dir: Path, copy: Path) -> None:
    text = "你好 fox"
    assert (
        Checkpoint.open(llama_dir).tokenizer().decode(Checkpoint.open(llama_dir).tokenizer()(text)["input_ids"][1:])
        == text
    )
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(BadInputError, match="tokenizer"):
        Checkpoint.open(copy).tokenizer()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match="no tokenizer"):
        Checkpoint.open(copy).tokenizer()


def test_a_name_that_is_no_unicode_is_refused_as_by_the_library(tmp_path: Path) -> None:
    header = b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(BadInputError, match="not Unicode"):
        read_header(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes((29).to_bytes(8, "little") + b'{"__metadata__": {"a": [1]}} ')
    with pytest.raises(BadInputError, match="__metadata__"):
        read_header(tmp_path / "y.safetensors")


def test_rows_of_a_tensor_are_read_alone(llama_dir: Path) -> None:
    checkpoint = Checkpoint.open(llama_dir)
    name = "model.embed_tokens.weight"
    whole = checkpoint.read(name)
    for start, stop in ((0, 1), (5, 9), (286, 400), (7, 7), (0, None)):
        assert torch.equal(checkpoint.read_rows(name, start, stop), whole[start:stop])
    assert checkpoint.dtype_of(name) == whole.dtype


def test_a_file_that_shrank_since_is_told(copy: Path) -> None:
    checkpoint = Checkpoint.open(copy)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.start)
    with pytest.raises(BadInputError, match="is cut short"):
        checkpoint.read(last.name)
