"""Export and reopen: every value is the checkpoint's; what cannot be carried is refused by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import AptError, BadInputError, TargetExistsError, UnsupportedError, UsageError
from apt.plugins.builtin.ollama.export import export_gguf, plan_export
from apt.plugins.builtin.ollama.mapping import check_config, rotary_scaling
from apt.plugins.builtin.ollama.options import ExportOptions


def values(path: Path) -> dict[str, np.ndarray]:
    """All tensors decoded by the gguf package."""
    import gguf

    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = np.array(data).reshape(tuple(reversed(tensor.shape.tolist())))
    return found


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    rows = weight.shape[0] // heads
    order = [head * rows + half * (rows // 2) + i for head in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return weight[order]


def test_f32_holds_every_tensor_exactly(lively, export, tmp_path: Path) -> None:
    model = lively(tmp_path / "m", attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    found = values(export(model, "f32").path)
    checkpoint = Checkpoint.open(model)
    source = {name: checkpoint.read(name).numpy() for name in checkpoint.tensors}
    assert len(found) == len(source)
    np.testing.assert_array_equal(found["token_embd.weight"], source["model.embed_tokens.weight"])
    np.testing.assert_array_equal(found["output.weight"], source["lm_head.weight"])
    np.testing.assert_array_equal(found["output_norm.weight"], source["model.norm.weight"])
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(3):
        for short, long in names.items():
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{long}.{kind}"
                if name not in source:
                    continue
                heads = {"attn_q": 4, "attn_k": 2}.get(short, 0)
                expected = permuted(source[name], heads) if heads else source[name]
                np.testing.assert_array_equal(found[f"blk.{layer}.{short}.{kind}"], expected)


def test_tied_embedding_is_stored_once(llama_dir: Path, export) -> None:
    result = export(llama_dir, "f16")
    file = GGUFFile.open(result.path)
    assert "output.weight" not in file.tensors
    assert file.parameters == result.parameters == Checkpoint.open(llama_dir).parameters
    assert result.size_bytes == result.path.stat().st_size


def test_metadata(llama_dir: Path, export) -> None:
    file = GGUFFile.open(export(llama_dir, "bf16", name="my model").path)
    assert file.path.name == "my model.gguf"
    assert file.metadata["general.name"] == "my model"
    assert file.metadata["general.file_type"] == 32
    expected = {
        "block_count": 3, "context_length": 128, "embedding_length": 32, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8, "vocab_size": 288,
        "rope.dimension_count": 8, "rope.freq_base": 10000.0,
    }  # fmt: skip
    assert {key: file.field(key) for key in expected} == expected
    assert file.metadata["tokenizer.ggml.model"] == "gpt2"
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    assert file.metadata["tokenizer.ggml.eos_token_id"] == 1
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 288


def test_rows_that_q8_0_cannot_hold_are_listed(new_llama: Callable[..., Path], export, tmp_path: Path) -> None:
    model = new_llama(tmp_path / "m", intermediate_size=44)
    result = export(model, "q8_0")
    # Its head has rows of 32 values, too short for logits.
    assert {k.name for k in result.kept} == {"token_embd.weight", *(f"blk.{i}.ffn_down.weight" for i in range(3))}
    assert all(k.type == "f16" for k in result.kept)
    assert all("44" in k.reason for k in result.kept if "ffn_down" in k.name)
    types = {name: tensor.type for name, tensor in GGUFFile.open(result.path).tensors.items()}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert "44" in str(result.tables()[1].rows)


def set_value(model: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_values_beyond_f16_stay_f32(new_llama: Callable[..., Path], export, tmp_path: Path) -> None:
    model = new_llama(tmp_path / "m")
    set_value(model, "model.layers.1.mlp.up_proj.weight", 1e5)
    result = export(model, "f16")
    assert [(k.name, k.type) for k in result.kept] == [("blk.1.ffn_up.weight", "f32")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_values_that_are_not_finite_are_refused(
    new_llama: Callable[..., Path], export, tmp_path: Path, value: float, name: str
) -> None:
    model = new_llama(tmp_path / "m")
    set_value(model, name, value)
    with pytest.raises(BadInputError, match=name):
        export(model, "f32", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "apt-home") == ["m"]


def test_the_same_export_gives_the_same_bytes(llama_dir: Path, export, tmp_path: Path) -> None:
    digests = {
        hashlib.sha256(export(llama_dir, "q8_0", output=tmp_path / str(i), name="x").path.read_bytes()).hexdigest()
        for i in range(2)
    }
    assert len(digests) == 1


def test_existing_output(llama_dir: Path, export, tmp_path: Path) -> None:
    export(llama_dir, output=tmp_path / "out", name="old")
    with pytest.raises(TargetExistsError):
        export(llama_dir, output=tmp_path / "out", name="new")
    export(llama_dir, output=tmp_path / "out", name="new", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "new.gguf"]


def test_overwrite_spares_the_model_itself(llama_dir: Path, export) -> None:
    before = sorted(p.name for p in llama_dir.iterdir())
    with pytest.raises(TargetExistsError, match="holds the source"):
        export(llama_dir, output=llama_dir, overwrite=True)
    assert sorted(p.name for p in llama_dir.iterdir()) == before


def test_dry_run_writes_nothing(llama_dir: Path, tmp_path: Path) -> None:
    options = ExportOptions(model=str(llama_dir), output=tmp_path / "out")
    planned = plan_export(options)
    assert not (tmp_path / "out").exists()
    assert not planned.written
    done = export_gguf(options)
    assert planned.tensors == done.tensors
    assert planned.path == done.path


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a\nb"])
def test_bad_names(llama_dir: Path, export, name: str) -> None:
    with pytest.raises(UsageError):
        export(llama_dir, name=name)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"model_type": "mistral", "sliding_window": 64}, UnsupportedError, "sliding_window"),
        ({"model_type": "gemma2"}, UnsupportedError, "gemma2"),
        ({"model_type": "never-heard-of"}, UnsupportedError, "never-heard-of"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantized"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedError, "yarn"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, UnsupportedError, "partial"),
        ({"num_hidden_layers": 4}, BadInputError, "layers.3"),
        ({"num_hidden_layers": 2}, BadInputError, "no place"),
        ({"intermediate_size": 65}, BadInputError, "gate_proj"),
        ({"tie_word_embeddings": False}, BadInputError, "lm_head"),
        ({"vocab_size": 287}, BadInputError, "embed_tokens"),
    ],
)
def test_configs_that_cannot_be_carried(
    new_llama: Callable[..., Path], export, edit_json, tmp_path: Path, changes: dict[str, Any],
    kind: type[AptError], words: str,
) -> None:  # fmt: skip
    model = new_llama(tmp_path / "m")
    edit_json(model / "config.json", **changes)
    with pytest.raises(kind, match=words):
        export(model)


def test_llama3_factors_are_those_of_transformers(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = new_llama(tmp_path / "m", rope_parameters=scaling, head_dim=32)
    checkpoint = Checkpoint.open(model)
    factors = rotary_scaling(checkpoint, check_config(checkpoint)).factors
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(model), "cpu")
    plain = 10000.0 ** -(np.arange(0, 32, 2) / 32)
    np.testing.assert_allclose(plain / np.array(factors), scaled.numpy(), rtol=1e-6)


def test_modelfile_template(llama_dir: Path, export) -> None:
    result = export(llama_dir, name="x", modelfile_template="FROM ./{gguf}\nPARAMETER temperature 0\n")
    assert result.modelfile_path.read_text() == "FROM ./x.gguf\nPARAMETER temperature 0\n"


def test_result_is_plain_json(llama_dir: Path, export) -> None:
    from apt.console.output import to_json

    value = json.loads(to_json(export(llama_dir, "q8_0")))
    assert value["type"] == "q8_0"
    assert value["written"] is True
    assert 8 < value["bits_per_weight"] < 12  # the head of so small a model stays f16
