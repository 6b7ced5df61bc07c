"""The view of a layer's matrices: the same numbers as the modules', written through, fused and transposed alike."""

import pytest
import torch
import transformers

from apt.checkpoint.architecture import descriptor
from apt.plugins.optional.pruning.decoder.matrices import matrices_of

SIZES = {"vocab_size": 32, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
WIDE = {**SIZES, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 20, "pad_token_id": 1}


def layer_of(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    settings = config.to_dict()
    architecture = descriptor(settings, where="test")
    layer = model.get_submodule(architecture.layer_prefix.format(0).rstrip("."))
    return layer, matrices_of(layer, architecture, architecture.dimensions(settings))


def check(matrix, module, rows: slice, inputs: int):
    """The part's product with any input is the module's, and what is written arrives."""
    x = torch.randn(3, inputs)
    product = torch.nn.functional.linear(x, matrix.weight, matrix.bias)
    assert torch.allclose(product, module(x)[..., rows], atol=1e-6)
    matrix.weight.zero_()
    bias = 0.0 if matrix.bias is None else matrix.bias
    assert torch.allclose(module(x)[..., rows], torch.zeros_like(product) + bias)


def test_plain_matrices():
    layer, found = layer_of(transformers.LlamaConfig(**WIDE, attention_bias=True))
    assert list(found) == ["q", "k", "v", "o", "gate", "up", "down"]
    attention = layer.self_attn
    for role, rows, inputs in (("q", 24, 24), ("k", 12, 24), ("v", 12, 24), ("o", 24, 24)):
        check(found[role], getattr(attention, f"{role}_proj"), slice(0, rows), inputs)
    check(found["down"], layer.mlp.down_proj, slice(0, 24), 20)


def test_fused_matrices():
    layer, found = layer_of(transformers.Phi3Config(**WIDE))
    assert list(found) == ["q", "k", "v", "o", "gate", "up", "down"]
    attention, mlp = layer.self_attn, layer.mlp
    check(found["q"], attention.qkv_proj, slice(0, 24), 24)
    check(found["k"], attention.qkv_proj, slice(24, 36), 24)
    check(found["v"], attention.qkv_proj, slice(36, 48), 24)
    check(found["gate"], mlp.gate_up_proj, slice(0, 20), 24)
    check(found["up"], mlp.gate_up_proj, slice(20, 40), 24)


def test_transposed_matrices():
    layer, found = layer_of(transformers.GPT2Config(**SIZES))
    assert list(found) == ["q", "k", "v", "o", "up", "down"]
    assert found["up"].weight.shape == (96, 24)
    for place, role in enumerate("qkv"):
        check(found[role], layer.attn.c_attn, slice(24 * place, 24 * place + 24), 24)
    check(found["o"], layer.attn.c_proj, slice(0, 24), 24)
    check(found["down"], layer.mlp.c_proj, slice(0, 24), 96)


@pytest.mark.parametrize("config", [transformers.Phi3Config(**WIDE), transformers.GPT2Config(**SIZES)])
def test_gradients_are_seen_alike(config):
    _, found = layer_of(config)
    assert all(matrix.gradient is None for matrix in found.values())
    sum((matrix.module.weight**2).sum() for role, matrix in found.items() if role in ("q", "o")).backward()
    for role in ("q", "o"):
        assert torch.allclose(found[role].gradient, 2 * found[role].weight)


def test_what_alternates_between_heads_is_given_whole():
    sizes = {**SIZES, "intermediate_size": 20, "max_position_embeddings": 16}
    _, found = layer_of(transformers.GPTNeoXConfig(**sizes))
    assert list(found) == ["o", "up", "down", "qkv"]
    assert found["qkv"].weight.shape == (72, 24)
