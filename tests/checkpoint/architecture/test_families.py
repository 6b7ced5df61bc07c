"""The descriptor table against models that transformers builds and writes."""

import math
from typing import Any

import pytest
import torch

from apt.checkpoint.architecture import ARCHITECTURES, descriptor
from apt.checkpoint.architecture.flops import active_parameters
from apt.checkpoint.expected import expected_tensors
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError
from tests.checkpoint.architecture.conftest import CASES, Built


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES.values()} == set(ARCHITECTURES)


def test_every_stored_tensor_is_expected_and_every_expected_one_is_stored(built: Built) -> None:
    stored = Checkpoint.open(built.path).tensors
    expected = expected_tensors(descriptor(built.config, where="x"), built.config)
    assert {n: t.shape for n, t in expected.items() if not t.optional} == {n: t.shape for n, t in stored.items()}


def test_every_tensor_has_its_component(built: Built) -> None:
    architecture = descriptor(built.config, where="x")
    counts: dict[str, int] = {}
    for name, tensor in Checkpoint.open(built.path).tensors.items():
        part = architecture.component_of(name)
        assert part != "other", name
        counts[part] = counts.get(part, 0) + tensor.elements
    # The router's correction of DeepSeek-V3 is a buffer: stored, but no parameter of torch.
    buffers = sum(b.numel() for n, b in built.model.named_buffers() if n.endswith("e_score_correction_bias"))
    assert sum(counts.values()) - buffers == sum(p.numel() for p in built.model.parameters())
    experts = sum(p.numel() for n, p in built.model.named_parameters() if ".experts." in n)
    assert counts.get("experts", 0) == experts
    embeddings = [m for m in built.model.modules() if isinstance(m, torch.nn.Embedding)]
    assert counts["embedding"] == sum(m.weight.numel() for m in embeddings)
    norms = [m for n, m in built.model.named_modules() if "norm" in type(m).__name__.lower() and "norms." not in n]
    assert counts.get("norm", 0) == sum(p.numel() for m in norms for p in m.parameters())


def test_roles_name_what_they_are(built: Built) -> None:
    architecture = descriptor(built.config, where="x")
    layers = {architecture.layer_of(name) for name in Checkpoint.open(built.path).tensors}
    assert layers == {None, 0, 1, 2, 3}
    for name in Checkpoint.open(built.path).tensors:
        layer = architecture.layer_of(name)
        if layer is not None:
            role = architecture.role_of(name)
            assert role is not None
            kind = "bias" if name.endswith(".bias") else "weight"
            pattern = architecture.layer_tensor(layer, role, kind)  # type: ignore[arg-type]
            assert name.startswith(pattern.partition("{}")[0])


def test_uniform_families_have_every_role_as_a_module_in_every_layer(built: Built) -> None:
    architecture = descriptor(built.config, where="x")
    if not architecture.uniform:
        with pytest.raises(
            UnsupportedError, match=f"pruning does not cover the architecture '{architecture.model_type}'"
        ):
            architecture.check_uniform("pruning")
        return
    architecture.check_uniform("pruning")
    assert not (architecture.sparse or architecture.latent or architecture.parameters or architecture.only)
    for layer in range(4):
        for role in architecture.roles:
            parameter = built.model.get_parameter(architecture.layer_tensor(layer, role))
            assert parameter.ndim == (1 if role.endswith("norm") else 2)


def test_kv_bytes_of_a_known_model() -> None:
    llama_70b = {
        "model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256, "max_position_embeddings": 8192,
    }  # fmt: skip
    assert descriptor(llama_70b, where="x").kv_bytes_per_token(llama_70b) == 327_680


#: Published configs of large models, the parameters (in billions, total and for a token) that their reports state, and
#: bytes of bf16 cache a token where they state them.
PUBLISHED: dict[str, tuple[dict[str, Any], float, float, int | None]] = {
    "Mixtral 8x7B": (
        {
            "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
            "num_experts_per_tok": 2, "max_position_embeddings": 32768, "sliding_window": None,
        },
        46.7, 12.9, 131_072,
    ),
    "Qwen3 30B-A3B": (
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "max_position_embeddings": 40960,
        },
        30.5, 3.3, None,
    ),
    "DeepSeek-V3": (
        {
            "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
            "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280, "max_position_embeddings": 163840,
        },
        671.0, 37.0, 70_272,
    ),
    "Gemma 2 9B": (
        {
            "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
            "max_position_embeddings": 8192, "sliding_window": 4096,
        },
        9.24, 9.24, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_large_models_are_those_that_were_published(name: str) -> None:
    config, total, active, cache = PUBLISHED[name]
    architecture = descriptor(config, where=name)
    found = sum(math.prod(t.shape) for t in expected_tensors(architecture, config).values() if not t.optional)
    assert found / 1e9 == pytest.approx(total, rel=0.005)
    # Reports round, and some leave the embedding or the head out.
    assert active_parameters(architecture, config, found) / 1e9 == pytest.approx(active, rel=0.025)
    if cache is not None:
        assert architecture.kv_bytes_per_token(config) == cache


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="no descriptor"):
        descriptor({"model_type": "mamba"}, where="x")
    with pytest.raises(BadInputError, match="hidden_size is 'big'"):
        ARCHITECTURES["llama"].dimensions({"hidden_size": "big"})
    with pytest.raises(BadInputError, match="num_hidden_layers is None"):
        ARCHITECTURES["llama"].dimensions({"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4})
    with pytest.raises(BadInputError, match="more than any model has"):
        ARCHITECTURES["llama"].dimensions({"hidden_size": 10**30})
    with pytest.raises(UnsupportedError, match=r"did you mean 'q'|known"):
        ARCHITECTURES["llama"].layer_tensor(0, "qkv")
    with pytest.raises(BadInputError, match="layer_types names 'mamba'"):
        ARCHITECTURES["gemma2"].kinds({"layer_types": ["mamba"]}, 1)
    with pytest.raises(BadInputError, match="list of 2 kinds"):
        ARCHITECTURES["gemma2"].kinds({"layer_types": ["full_attention"]}, 2)
