"""Files that no tool writes: every command on them ends in findings, an answer or one clear error."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.diagnosis import diagnose, parent_findings
from apt.checkpoint.expected import MOST_TENSORS, expected_tensors
from apt.checkpoint.facts import model_facts
from apt.checkpoint.listing import list_models
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.size_report import size_facts
from apt.console.errors import BadInputError, NotFoundError

EXPERTS = {
    "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip


@pytest.fixture
def model(new_llama: Callable[..., Path], tmp_path: Path) -> Path:
    return new_llama(tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(path: Path, field: bytes, shape: tuple[int, ...]) -> Path:
    """Write a GGUF with two tokens, one more field, and an embedding of F32 values."""
    tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    fields = [text("general.architecture") + struct.pack("<I", 8) + text("llama"), tokens, field]
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    table = text("token_embd.weight") + sizes + struct.pack("<IQ", 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + b"".join(fields) + table
    path.write_bytes(head + bytes(-len(head) % 32 + 32))
    return path


def test_a_gguf_whose_label_is_a_list_and_whose_embedding_is_one_number(tmp_path: Path) -> None:
    label = text("general.file_type") + struct.pack("<IIQI", 9, 4, 1, 7)
    assert diagnose(str(write_gguf(tmp_path / "a.gguf", label, (4, 2)))).verdict == "healthy"
    label = text("general.file_type") + struct.pack("<II", 4, 0)
    assert diagnose(str(write_gguf(tmp_path / "b.gguf", label, ()))).findings == ()


def test_more_experts_than_any_model_has_cost_nothing(model: Path) -> None:
    edit(model, **EXPERTS | {"num_experts": 10**9})
    checkpoint = Checkpoint.open(model)
    with pytest.raises(BadInputError, match="more than any model has"):
        expected_tensors(checkpoint.architecture, checkpoint.config)
    assert "more than any model has" in " ".join(f.evidence for f in diagnose(str(model)).findings)
    assert MOST_TENSORS > 61 * 3 * 384  # a model of a trillion parameters passes


@pytest.mark.parametrize("value", [5, "x", True, {"a": 1}])
def test_dense_layers_that_are_no_list(model: Path, value: Any) -> None:
    edit(model, **EXPERTS | {"mlp_only_layers": value})
    assert any("mlp_only_layers" in note for note in model_facts(str(model)).notes)
    assert diagnose(str(model)).verdict == "faulty"


def test_numbers_beyond_all_floats(model: Path) -> None:
    edit(model, rms_norm_eps=10**400, rope_theta=-(10**400))
    found = {f.code: f.evidence for f in diagnose(str(model)).findings}
    assert "a number of 1329 bits" in found["norm-epsilon"] and "a number of 1329 bits" in found["rope-settings"]


@pytest.mark.parametrize(
    "content",
    [
        "[]", "nope", '{"model": []}', '{"model": {"vocab": 5}}', '{"model": {"vocab": {}, "merges": 5}}',
        '{"model": {"vocab": [5]}}', '{"model": {"vocab": {"a": 0}, "merges": [5]}}',
        '{"post_processor": {"processors": 5}, "model": {"vocab": {"a": 1}}}',
    ],
)  # fmt: skip
def test_tokenizers_of_any_form(model: Path, content: str) -> None:
    (model / "tokenizer.json").write_text(content, encoding="utf-8")
    assert size_facts(str(model)).tensor_bytes > 0
    diagnose(str(model))
    try:
        assert model_facts(str(model)).parameters > 0
    except BadInputError as error:
        assert "tokenizer.json" in str(error)  # the one refusal that is right


def test_what_ends_in_json_and_is_no_file(model: Path) -> None:
    (model / "directory.json").mkdir()
    (model / "dangling.json").symlink_to("nowhere")
    os.mkfifo(model / "pipe.json")
    assert model_facts(str(model)).problems == () and diagnose(str(model)).verdict == "healthy"


def test_a_link_to_nothing_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_text("x")
    (found,) = [m for m in list_models([tmp_path]).models if m.place == "directory"]
    assert found.parameters is None and found.problem
    with pytest.raises(NotFoundError, match="no such directory"):
        list_models([tmp_path / "notes.txt"])


def test_a_digest_that_is_a_number(model: Path, new_llama: Callable[..., Path], apt_home: Path) -> None:
    new_llama(apt_home / "models" / "parent")
    (model / "apt.json").write_text(json.dumps({"parent": {"name": "parent", "digest": 5}}))
    assert list(parent_findings(Checkpoint.open(model))) == []


def test_commands_that_mend_are_quoted_for_a_shell(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = new_llama(tmp_path / "my model; x")
    (model / "generation_config.json").write_bytes(b"\xef\xbb\xbf{}")
    (model / "$(x).bin").write_bytes(b"x")
    mends = {f.code: f.mend for f in diagnose(str(model)).findings}
    assert mends["byte-order-mark"].endswith(f" '{model}/generation_config.json'")
    assert mends["pickle"] == f"rm '{model}/$(x).bin'"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_on(model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises((BadInputError, NotFoundError)):
        model_facts(str(model))
    assert diagnose(str(model)).verdict == "faulty"
    list_models([model.parent])


def test_a_directory_in_the_place_of_the_config(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    assert "not a regular file" in diagnose(str(model)).findings[0].evidence


def test_a_file_without_a_tensor_is_read_and_no_stray(model: Path) -> None:
    from safetensors.torch import save_file

    save_file({}, model / "model.safetensors")
    assert "ambiguous-weights" not in {f.code for f in diagnose(str(model)).findings}


def test_no_name_is_not_the_current_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apt.console.errors import UsageError

    monkeypatch.chdir(model)
    with pytest.raises(UsageError):
        diagnose("")
