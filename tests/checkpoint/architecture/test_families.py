"""The descriptor table against models that transformers builds and writes."""

import pytest
import torch

from apt.checkpoint.architecture import ARCHITECTURES, descriptor
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


def test_what_pruning_takes_has_equal_layers_of_plain_matrices() -> None:
    prunable = {name for name, a in ARCHITECTURES.items() if a.prunable}
    assert prunable == {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2",
    }  # fmt: skip
    assert not any(a.sparse or a.latent or a.parameters for a in ARCHITECTURES.values() if a.prunable)
    ARCHITECTURES["llama"].check_prunable()
    with pytest.raises(UnsupportedError, match="'mixtral'"):
        ARCHITECTURES["mixtral"].check_prunable()


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
    with pytest.raises(BadInputError, match="more than any model has"):
        ARCHITECTURES["llama"].dimensions({"hidden_size": 10**30})
    with pytest.raises(UnsupportedError, match=r"did you mean 'q'|known"):
        ARCHITECTURES["llama"].layer_tensor(0, "qkv")
    with pytest.raises(BadInputError, match="layer_types names 'mamba'"):
        ARCHITECTURES["gemma2"].kinds({"layer_types": ["mamba"]}, 1)
    with pytest.raises(BadInputError, match="list of 2 kinds"):
        ARCHITECTURES["gemma2"].kinds({"layer_types": ["full_attention"]}, 2)
