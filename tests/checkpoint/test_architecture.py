"""The descriptor table against models that transformers builds."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from apt.checkpoint.architecture import ARCHITECTURES, descriptor
from apt.console.errors import BadInputError, UnsupportedError

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 64, "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def build(model_type: str) -> tuple[dict[str, Any], Any]:
    config = AutoConfig.for_model(model_type, **(GPT2_SIZES if model_type == "gpt2" else SIZES))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return config.to_dict(), model


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_tensor_has_its_place(model_type: str) -> None:
    config, model = build(model_type)
    architecture = descriptor(config, where="x")
    d = architecture.dimensions(config)
    state = model.state_dict()
    for name in state:
        assert architecture.component_of(name) != "other", name
    assert d.layers == 2
    for layer in range(d.layers):
        for role in architecture.roles:
            assert architecture.layer_tensor(layer, role) in state
            assert architecture.role_of(architecture.layer_tensor(layer, role)) == role
    axis = 1 if architecture.transposed else 0
    if "k" in architecture.roles:
        assert state[architecture.layer_tensor(0, "k")].shape[axis] == d.kv_heads * d.head_dim
        assert state[architecture.layer_tensor(0, "q")].shape[axis] == d.heads * d.head_dim
    assert state[architecture.layer_tensor(0, "down")].shape[1 - axis] == d.ff
    assert state[architecture.embedding].shape == (d.vocab, d.hidden)
    assert {architecture.layer_of(n) for n in state} == {None, 0, 1}


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_biases_are_those_that_the_model_has(model_type: str) -> None:
    config, model = build(model_type)
    architecture = descriptor(config, where="x")
    expected = {
        architecture.layer_tensor(0, role, "bias")
        for role, key in architecture.biases.items()
        if key is True or config.get(str(key))
    }
    linear = {
        n for n in model.state_dict() if n.endswith(".bias") and architecture.layer_of(n) == 0
        and not (architecture.role_of(n) or "").endswith("norm")
    }  # fmt: skip
    assert linear == expected


def test_kv_bytes_of_a_known_model() -> None:
    llama_70b = {
        "model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256, "max_position_embeddings": 8192,
    }  # fmt: skip
    assert descriptor(llama_70b, where="x").kv_bytes_per_token(llama_70b) == 327_680


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="no descriptor"):
        descriptor({"model_type": "mamba"}, where="x")
    with pytest.raises(BadInputError, match="hidden_size is 'big'"):
        ARCHITECTURES["llama"].dimensions({"hidden_size": "big"})
    with pytest.raises(BadInputError, match="num_hidden_layers is None"):
        ARCHITECTURES["llama"].dimensions({"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4})
    with pytest.raises(UnsupportedError, match=r"did you mean 'q'|known"):
        ARCHITECTURES["llama"].layer_tensor(0, "qkv")
