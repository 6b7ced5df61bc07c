"""The table of families, checked against the models of transformers in ``tests/checkpoint/architecture``."""

from collections.abc import Mapping
from typing import Any, Final

from apt.checkpoint.architecture.descriptor import Architecture, AttentionPattern
from apt.console.errors import UnsupportedError, shown

_LLAMA_ROLES: Final = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_QK_NORMS: Final = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_FOUR_NORMS: Final = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_POST_NORMS: Final = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_NO_NORMS: Final = {role: path for role, path in _LLAMA_ROLES.items() if not role.endswith("norm")}
_EXPERTS: Final = {
    "router": "mlp.gate",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
}
_SHARED_EXPERT: Final = {
    "shared_gate": "mlp.shared_expert.gate_proj",
    "shared_up": "mlp.shared_expert.up_proj",
    "shared_down": "mlp.shared_expert.down_proj",
    "shared_router": "mlp.shared_expert_gate",
}
_SHARED_EXPERTS: Final = {f"shared_{r}": f"mlp.shared_experts.{r}_proj" for r in ("gate", "up", "down")}
_DENSE: Final = dict.fromkeys(("gate", "up", "down"), "dense")
_ATTENTION_BIAS: Final = dict.fromkeys("qkvo", "attention_bias")
#: Mistral and Phi-3 slide in every layer when a window is stated.
_WINDOW: Final = AttentionPattern()
#: Qwen's windows need a switch and begin in a later layer.
_QWEN_WINDOW: Final = AttentionPattern(
    switch="use_sliding_window", first_key="max_window_layers", first=28, default_window=4096
)
_GEMMA_KEYS: Final = ("sliding_window_pattern", "_sliding_window_pattern")
_UNTIED: Final[frozenset[str]] = frozenset()
_TIED: Final = frozenset({"tie_word_embeddings"})


def _mixture(roles: Mapping[str, str]) -> dict[str, str]:
    """Say that the roles of experts are in sparse layers, those of the dense MLP in the others."""
    return {r: "sparse" for r in roles if r.startswith(("expert_", "shared_", "router"))} | {
        r: where for r, where in _DENSE.items() if r in roles
    }


def _deepseek(model_type: str, **changes: Any) -> Architecture:
    """DeepSeek-V2 and V3: latent attention, a first dense layer or more, then experts with shared ones."""
    roles = {
        "q": "self_attn.q_proj",
        "q_a": "self_attn.q_a_proj",
        "q_a_norm": "self_attn.q_a_layernorm",
        "q_b": "self_attn.q_b_proj",
        "kv_a": "self_attn.kv_a_proj_with_mqa",
        "kv_a_norm": "self_attn.kv_a_layernorm",
        "kv_b": "self_attn.kv_b_proj",
        **{r: p for r, p in _LLAMA_ROLES.items() if r not in "qkv"},
        **_EXPERTS,
        **_SHARED_EXPERTS,
    }
    low_rank = dict.fromkeys(("q_a", "q_a_norm", "q_b"), "low-rank")
    return Architecture(
        model_type,
        roles,
        only=_mixture(roles) | low_rank | {"q": "full-rank", "router_bias": "sparse"},
        sparse="after-first",
        latent=True,
        biases=dict.fromkeys(("q_a", "kv_a", "o"), "attention_bias")
        | dict.fromkeys((*_DENSE, *_SHARED_EXPERTS), "mlp_bias"),
        true_by_default=_UNTIED,
        keys={"num_experts": "n_routed_experts"},
        **changes,
    )


_FAMILIES: Final = (
    Architecture(
        "llama",
        _LLAMA_ROLES,
        gguf_name="llama",
        uniform=True,
        heads_divide_hidden=True,
        biases=_ATTENTION_BIAS | dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
        true_by_default=_UNTIED,
    ),
    Architecture(
        "mistral",
        _LLAMA_ROLES,
        gguf_name="llama",
        uniform=True,
        attention=AttentionPattern(default_window=4096),
        true_by_default=_UNTIED,
    ),
    Architecture(
        "qwen2",
        _LLAMA_ROLES,
        gguf_name="llama",  # with biases; llama.cpp's own qwen2 takes only heads that fill the hidden size
        uniform=True,
        attention=_QWEN_WINDOW,
        biases=dict.fromkeys("qkv", True),
        true_by_default=_UNTIED,
    ),
    Architecture(
        "qwen3",
        _LLAMA_ROLES | _QK_NORMS,
        gguf_name="qwen3",
        uniform=True,
        attention=_QWEN_WINDOW,
        biases=_ATTENTION_BIAS,
        true_by_default=_UNTIED,
        defaults={"head_dim": 128},
    ),
    Architecture("gemma", _LLAMA_ROLES, uniform=True, biases=_ATTENTION_BIAS, true_by_default=_TIED,
                 heads_divide_hidden=True, norms_add_one=True, embeddings_scaled=True, defaults={"head_dim": 256}),
    Architecture(
        "gemma2",
        _LLAMA_ROLES | _FOUR_NORMS,
        uniform=True,
        attention=AttentionPattern(every=2, default_window=4096),
        heads_divide_hidden=True,
        norms_add_one=True,
        embeddings_scaled=True,
        biases=_ATTENTION_BIAS,
        defaults={"head_dim": 256},
    ),
    Architecture(
        "gemma3_text",
        _LLAMA_ROLES | _FOUR_NORMS | _QK_NORMS,
        uniform=True,
        attention=AttentionPattern(every=6, every_keys=_GEMMA_KEYS, default_window=4096),
        heads_divide_hidden=True,
        norms_add_one=True,
        embeddings_scaled=True,
        biases=_ATTENTION_BIAS,
        defaults={"head_dim": 256},
    ),
    Architecture(
        "phi3",
        {r: p for r, p in _LLAMA_ROLES.items() if r not in ("q", "k", "v", "gate", "up")}
        | {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
        uniform=True,
        attention=_WINDOW,
        true_by_default=_UNTIED,
    ),
    Architecture("olmo", _NO_NORMS, uniform=True, final_norm="", biases=_ATTENTION_BIAS, true_by_default=_UNTIED),
    Architecture(
        "olmo2",
        _NO_NORMS | _QK_NORMS | _POST_NORMS,
        uniform=True,
        norms_over_all_heads=True,
        biases=_ATTENTION_BIAS,
        true_by_default=_UNTIED,
    ),
    Architecture(
        "olmo3",
        _NO_NORMS | _QK_NORMS | _POST_NORMS,
        uniform=True,
        attention=AttentionPattern(every=4, default_window=4096),
        norms_over_all_heads=True,
        biases=_ATTENTION_BIAS,
        true_by_default=_UNTIED,
    ),
    Architecture(
        "gpt2",
        {
            "qkv": "attn.c_attn",
            "o": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
            "attention_norm": "ln_1",
            "mlp_norm": "ln_2",
        },
        uniform=True,
        layer_prefix="transformer.h.{}.",
        embedding="transformer.wte.weight",
        other_embeddings=("transformer.wpe.weight",),
        final_norm="transformer.ln_f.weight",
        transposed=True,
        heads_fill_hidden=True,
        layer_norm=True,
        biases=dict.fromkeys(("qkv", "o", "up", "down"), True),
        keys={
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "num_key_value_heads": "n_head",
        },
    ),
    Architecture(
        "gpt_neox",
        {
            "qkv": "attention.query_key_value",
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
            "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
        },
        uniform=True,
        layer_prefix="gpt_neox.layers.{}.",
        embedding="gpt_neox.embed_in.weight",
        final_norm="gpt_neox.final_layer_norm.weight",
        head="embed_out.weight",
        heads_fill_hidden=True,
        qkv_by_head=True,
        layer_norm=True,
        biases={"qkv": "attention_bias", "o": "attention_bias", "up": True, "down": True},
        true_by_default=frozenset({"attention_bias"}),
        keys={"num_key_value_heads": "num_attention_heads"},
    ),
    Architecture(
        "stablelm",
        _LLAMA_ROLES
        | {"q_norm": "self_attn.q_layernorm.norms.{}", "k_norm": "self_attn.k_layernorm.norms.{}"},
        only={"q_norm": "qk_layernorm", "k_norm": "qk_layernorm", "mlp_norm": "sequential"},
        layer_norm=True,
        biases=dict.fromkeys("qkv", "use_qkv_bias"),
        true_by_default=_UNTIED,
    ),
    Architecture(
        "mixtral",
        {r: p for r, p in _LLAMA_ROLES.items() if r not in ("gate", "up", "down")}
        | {
            "router": "block_sparse_moe.gate",
            "expert_gate": "block_sparse_moe.experts.{}.w1",
            "expert_up": "block_sparse_moe.experts.{}.w3",
            "expert_down": "block_sparse_moe.experts.{}.w2",
        },
        attention=_WINDOW,
        sparse="all",
        true_by_default=_UNTIED,
        keys={"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"},
        defaults={"num_experts": 8, "num_experts_per_tok": 2},
    ),
    Architecture(
        "qwen2_moe",
        _LLAMA_ROLES | _EXPERTS | _SHARED_EXPERT,
        only=_mixture(_LLAMA_ROLES | _EXPERTS | _SHARED_EXPERT),
        attention=AttentionPattern(
            switch="use_sliding_window", every=2, before_key="max_window_layers", before=28, default_window=4096
        ),
        sparse="step",
        biases=dict.fromkeys("qkv", "qkv_bias"),
        true_by_default=frozenset({"qkv_bias"}),
        defaults={
            "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
    ),
    Architecture(
        "qwen3_moe",
        _LLAMA_ROLES | _QK_NORMS | _EXPERTS,
        only=_mixture(_LLAMA_ROLES | _EXPERTS),
        attention=AttentionPattern(switch="use_sliding_window", default_window=4096),
        sparse="step",
        biases=_ATTENTION_BIAS,
        true_by_default=_UNTIED,
        aliases={"num_experts": "num_local_experts"},  # transformers 5 writes it so
        defaults={"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
    _deepseek(
        "deepseek_v2",
        defaults={
            "num_experts": 64, "q_lora_rank": 1536, "moe_intermediate_size": 1407, "n_shared_experts": 2,
            "first_k_dense_replace": 0, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
            "v_head_dim": 128,
        },
    ),
    _deepseek(
        "deepseek_v3",
        parameters={"router_bias": "mlp.gate.e_score_correction_bias"},
        defaults={
            "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
            "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128, "v_head_dim": 128,
        },
    ),
    Architecture(
        "qwen3_next",
        _LLAMA_ROLES
        | _QK_NORMS
        | _EXPERTS
        | _SHARED_EXPERT
        | {
            "linear_in": "linear_attn.in_proj_qkvz",
            "linear_gates": "linear_attn.in_proj_ba",
            "linear_conv": "linear_attn.conv1d",
            "linear_norm": "linear_attn.norm",
            "linear_out": "linear_attn.out_proj",
        },
        parameters={"linear_decay": "linear_attn.A_log", "linear_step": "linear_attn.dt_bias"},
        only=_mixture(_LLAMA_ROLES | _EXPERTS | _SHARED_EXPERT)
        | dict.fromkeys(("q", "k", "v", "o", "q_norm", "k_norm"), "attention")
        | dict.fromkeys(
            ("linear_in", "linear_gates", "linear_conv", "linear_norm", "linear_out", "linear_decay", "linear_step"),
            "linear",
        ),
        attention=AttentionPattern(other="linear", every=4, every_keys=("full_attention_interval",)),
        sparse="step",
        gated_queries=True,
        biases=_ATTENTION_BIAS,
        true_by_default=_UNTIED,
        defaults={
            "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "head_dim": 256, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        },
    ),
)  # fmt: skip

ARCHITECTURES: Final[Mapping[str, Architecture]] = {a.model_type: a for a in _FAMILIES}


def descriptor(config: Mapping[str, Any], *, where: str) -> Architecture:
    """Return the descriptor of a config's family.

    :param where: the model's path, for the message.
    :raises UnsupportedError: for a family without descriptor.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"{where}: no descriptor for the architecture {shown(model_type)}",
            hint=f"known: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[model_type]
