"""Small models of every family, made by transformers on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest

#: Settings that every family understands; those that a family does not know are left aside by its config.
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    **_EXPERTS, "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 2,
    "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 12, "num_key_value_heads": 4,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 64}
_QWEN_MOE = {**_EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 24}
_QWEN_NEXT = {
    **_QWEN_MOE, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}  # fmt: skip
_WINDOW = {"sliding_window": 8}
_SWITCHED = {**_WINDOW, "use_sliding_window": True, "max_window_layers": 2}

#: Name of a case → family and settings beside SMALL. Every family is there, with each of its ways to be built.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-gqa-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mqa-tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", _WINDOW),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", _SWITCHED),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-window": ("qwen3", _SWITCHED),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", _WINDOW),
    "gemma3": ("gemma3_text", {**_WINDOW, "sliding_window_pattern": 3}),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", _WINDOW),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", _WINDOW),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-no-bias": ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    "stablelm": ("stablelm", {}),
    "stablelm-norms": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "mixtral": ("mixtral", {"num_experts_per_tok": 2, "num_local_experts": 4}),
    "mixtral-window": ("mixtral", {"num_experts_per_tok": 2, "num_local_experts": 4, **_WINDOW}),
    "qwen2_moe": ("qwen2_moe", _QWEN_MOE),
    "qwen2_moe-mixed": ("qwen2_moe", {**_QWEN_MOE, **_SWITCHED, "decoder_sparse_step": 2, "qkv_bias": False}),
    "qwen3_moe": ("qwen3_moe", _QWEN_MOE),
    "qwen3_moe-mixed": ("qwen3_moe", {**_QWEN_MOE, "mlp_only_layers": [1], "head_dim": 16}),
    "deepseek_v2": ("deepseek_v2", _DEEPSEEK),
    "deepseek_v2-full-rank": ("deepseek_v2", {**_DEEPSEEK, "q_lora_rank": None, "mlp_bias": True}),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "attention_bias": True}),
    "qwen3_next": ("qwen3_next", _QWEN_NEXT),
}  # fmt: skip


class Built:
    """A model in memory, its checkpoint and its config as it was written."""

    def __init__(self, model: Any, path: Path) -> None:
        self.model = model
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))


def build_case(case: str, path: Path) -> Built:
    """Make the model of a case, random and in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, changes = CASES[case]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **changes})).eval()
    model.save_pretrained(path)
    return Built(model, path)


@pytest.fixture(scope="session", params=sorted(CASES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each case in turn."""
    return build_case(request.param, tmp_path_factory.mktemp(request.param))
