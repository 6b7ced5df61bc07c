"""Faults built one at a time and named rightly; sound models of every family get no finding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apt.checkpoint.diagnosis import Diagnosis, diagnose
from apt.checkpoint.expected import expected_tensors
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.weight_scan import scan_weights
from apt.console.errors import BadInputError, NotFoundError

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2"]
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 40, "head_dim": 8, "n_embd": 32,
    "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture
def model(new_llama: Callable[..., Path], tmp_path: Path) -> Path:
    return new_llama(tmp_path / "model")


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value = {k: v for k, v in (value | changes).items() if v is not ...}
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, directory / "model.safetensors", {"format": "pt"})


def codes(found: Diagnosis, severity: str | None = None) -> list[str]:
    return [f.code for f in found.findings if severity in (None, f.severity)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_model_has_no_finding_and_every_tensor_is_expected(
    family: str, llama_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = tmp_path / family
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(AutoConfig.for_model(family))(**SMALL))
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((llama_dir / name).read_bytes())
    found = diagnose(str(path))
    assert found.findings == () and found.verdict == "healthy"
    checkpoint = Checkpoint.open(path)
    wanted = expected_tensors(checkpoint.architecture, checkpoint.config)
    stored = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert {n: w.shape for n, w in wanted.items()} == stored


def test_a_missing_tensor_is_named(model: Path) -> None:
    edit_weights(model, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    found = diagnose(str(model))
    assert codes(found) == ["missing-tensor"] and found.verdict == "faulty"
    assert found.findings[0].where == "model.layers.1.mlp.up_proj.weight"


def test_a_transposed_square_matrix_cannot_be_seen_but_a_rectangular_one_is(model: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(model, lambda t: t.update({name: t[name].T}))
    found = diagnose(str(model))
    assert codes(found) == ["tensor-shape"] and "transposed" in found.findings[0].cause


def test_layers_that_the_config_leaves_out_are_unexpected(model: Path) -> None:
    edit_json(model / "config.json", num_hidden_layers=2)
    found = diagnose(str(model))
    assert set(codes(found)) == {"unexpected-tensor"} and "num_hidden_layers" in found.findings[0].cause


def test_a_vocabulary_that_the_config_has_wrong(model: Path) -> None:
    edit_json(model / "config.json", vocab_size=290)
    found = diagnose(str(model))
    assert codes(found) == ["tensor-shape"] and "288" in found.findings[0].mend


def test_a_tokenizer_larger_than_the_embedding(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append({"id": 400, "content": "<new>"})
    edit_json(model / "tokenizer.json", **tokenizer)
    assert codes(diagnose(str(model))) == ["vocabulary"]


def test_special_ids_outside_and_beside(model: Path) -> None:
    edit_json(model / "generation_config.json", eos_token_id=5)
    found = diagnose(str(model))
    assert codes(found) == ["special-id-differs"] and found.verdict == "faulty"  # 5 is a piece of text
    edit_json(model / "generation_config.json", eos_token_id=0)
    found = diagnose(str(model))
    assert codes(found) == ["special-id-differs"] and found.verdict == "suspicious"
    assert "off by one" in found.findings[0].cause
    edit_json(model / "config.json", eos_token_id=288)
    found = diagnose(str(model))
    assert codes(found, "error") == ["special-id"] and "288" in found.findings[0].evidence
    edit_json(model / "config.json", eos_token_id=[1, 2], pad_token_id=-1)
    edit_json(model / "generation_config.json", eos_token_id=1, pad_token_id=...)
    assert diagnose(str(model)).findings == ()


def test_non_finite_values_are_counted_and_placed(model: Path) -> None:
    name = "model.layers.2.mlp.down_proj.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3, 5] = float("nan")
        tensors[name][4, 0] = float("-inf")

    edit_weights(model, spoil)
    found = diagnose(str(model))
    assert codes(found) == ["non-finite"] and found.findings[0].where == name
    assert "2 values" in found.findings[0].evidence and "[3, 5]" in found.findings[0].evidence


def test_dead_rows_zero_matrices_and_large_values_are_warnings(model: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.gate_proj.weight"][:5] = 0
        tensors["model.layers.1.self_attn.o_proj.weight"][:] = 0
        tensors["model.layers.2.input_layernorm.weight"][3] = 1e5
        tensors["model.embed_tokens.weight"][7] = 0

    edit_weights(model, spoil)
    found = diagnose(str(model))
    assert sorted(codes(found, "warning")) == ["dead-embedding", "dead-rows", "fp16-range", "zero-matrix"]
    assert not codes(found, "error")
    assert found.verdict == "suspicious"
    dead = next(f for f in found.findings if f.code == "dead-rows")
    assert dead.evidence.startswith("5 of 64 rows")


def test_a_copied_layer_is_found(model: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if ".layers.2." in name:
                tensors[name] = tensors[name.replace(".2.", ".0.")].clone()

    edit_weights(model, spoil)
    found = diagnose(str(model))
    assert codes(found) == ["copied-layer"] and found.findings[0].where == "layer 2"


def test_the_head_and_the_tie_contradict(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    tied = new_llama(tmp_path / "tied")
    edit_json(tied / "config.json", tie_word_embeddings=False)
    assert codes(diagnose(str(tied))) == ["missing-head"]
    untied = new_llama(tmp_path / "untied", tie_word_embeddings=False)
    edit_json(untied / "config.json", tie_word_embeddings=True)
    assert codes(diagnose(str(untied)), "warning") == ["tied-head"]
    edit_weights(untied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert codes(diagnose(str(untied)), "note") == ["tied-head"]


def test_a_missing_bias_is_found(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m", attention_bias=True)
    assert diagnose(str(path)).findings == ()
    edit_weights(path, lambda t: t.pop("model.layers.0.self_attn.q_proj.bias"))
    assert codes(diagnose(str(path))) == ["missing-bias"]


def test_heads_and_dtype_that_contradict(model: Path) -> None:
    edit_json(model / "config.json", num_attention_heads=3, dtype="bfloat16")
    found = diagnose(str(model))
    assert {"head-groups", "head-size", "tensor-shape"} <= set(codes(found, "error"))
    assert "dtype" in codes(found, "warning")


def test_checksums_of_a_model_made_here(model: Path) -> None:
    from apt.checkpoint.reader import file_digest

    files = {"config.json": {"size_bytes": 1, "sha256": file_digest(model / "config.json")}}
    edit_json(model / "apt.json", files=files)
    assert diagnose(str(model)).findings == ()
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    assert codes(diagnose(str(model))) == ["checksum"]
    edit_json(model / "apt.json", files={"gone.json": {"sha256": ""}})
    assert codes(diagnose(str(model))) == ["missing-file"]


def test_a_byte_order_mark_and_pickles(model: Path) -> None:
    config = model / "generation_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    found = diagnose(str(model))
    assert codes(found) == ["byte-order-mark", "pickle"]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1"),
        ("{{ messages[0]['content'].nosuch() }}", "UndefinedError"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", ""),
    ],
)
def test_a_chat_template_that_does_not_render(model: Path, template: str, fault: str) -> None:
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    found = diagnose(str(model))
    assert codes(found) == ["chat-template"] and fault in found.findings[0].evidence


def test_a_sound_chat_template(model: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}🙂{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert diagnose(str(model)).findings == ()


def test_files_that_cannot_be_read_are_findings(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    found = diagnose(str(model))
    assert codes(found) == ["truncated"] and "truncated" in found.findings[0].evidence and found.tables()
    weights.write_bytes(whole)
    (model / "tokenizer.json").write_text("{not json")
    assert "unreadable" in codes(diagnose(str(model)))
    (model / "config.json").unlink()
    assert "no config.json" in diagnose(str(model)).findings[0].evidence
    with pytest.raises(NotFoundError):
        diagnose(str(tmp_path / "nowhere"))


def test_an_unknown_architecture_is_a_warning(model: Path) -> None:
    edit_json(model / "config.json", model_type="newfangled")
    found = diagnose(str(model))
    assert codes(found) == ["unknown-architecture"] and found.verdict == "suspicious"


def test_absurdly_many_layers_are_a_fault_and_not_listed(model: Path) -> None:
    edit_json(model / "config.json", num_hidden_layers=1_000_000_000)
    assert "layer-count" in codes(diagnose(str(model)))
    with pytest.raises(BadInputError, match="more than it has tensors"):
        Checkpoint.open(model).load()


def test_no_tokenizer_is_a_warning(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert codes(diagnose(str(model))) == ["no-tokenizer"]


def test_a_gguf_with_a_special_id_outside(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["a", "b", "c"])
    writer.add_eos_token_id(3)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    assert sorted(codes(diagnose(str(tmp_path / "m.gguf")))) == ["special-id", "vocabulary"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_scan_equals_torch(dtype: torch.dtype, llama_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("apt.checkpoint.weight_scan.BLOCK_BYTES", 512)
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(37, 29, generator=generator).to(dtype)
    matrix[4], matrix[30] = 0, -0.0
    spoilt = matrix.clone()
    spoilt[20, 7], spoilt[33, 1], spoilt[33, 2] = float("inf"), float("nan"), float("-inf")
    tensors = {"clean": matrix, "spoilt": spoilt, "vector": torch.randn(11, generator=generator).to(dtype)}
    tensors["ints"] = torch.arange(4)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    found = {s.name: s for s in scan_weights(Checkpoint.open(tmp_path))}
    assert set(found) == {"clean", "spoilt", "vector"}
    for name, scan in found.items():
        values = tensors[name].double()
        finite = values[values.isfinite()]
        bad = (~values.isfinite()).flatten().nonzero()
        assert scan.non_finite == len(bad)
        assert scan.first_non_finite == (int(bad[0]) if len(bad) else None)
        assert scan.largest == float(finite.abs().max())
        by_row = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
        assert scan.zero_rows == int((by_row == 0).all(dim=1).sum()) and scan.rows == len(by_row)
    assert found["clean"].fingerprint != found["spoilt"].fingerprint


ODD = [None, True, -1, 0, 3, 2.5, 1e308, "x", "", [], [1], [[]], {}, {"a": 1}, 10**30, "文"]
KEYS = {
    "config.json": (
        "model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size",
        "tie_word_embeddings", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
        "dtype", "torch_dtype", "quantization_config", "num_experts", "num_experts_per_tok", "eos_token_id",
        "pad_token_id",
    ),
    "generation_config.json": ("eos_token_id", "top_p", "temperature", "do_sample", "min_length", "max_length"),
    "tokenizer.json": ("model", "added_tokens", "post_processor"),
    "tokenizer_config.json": ("chat_template", "eos_token", "pad_token", "add_bos_token"),
    "apt.json": ("files", "parent"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in KEYS.items() for key in keys])
def test_any_value_of_any_key_ends_in_findings_and_never_in_a_traceback(model: Path, file: str, key: str) -> None:
    for value in ODD:
        edit_json(model / file, **{key: value})
        assert diagnose(str(model)).verdict in ("healthy", "suspicious", "faulty")
