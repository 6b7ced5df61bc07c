"""Cache, operations and memory at a context."""

from typing import Any

import pytest

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.capacity import DEFAULT_CONTEXT, cache_facts, default_context, flop_facts, memory_needs

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def test_windows_that_are_full_add_nothing() -> None:
    config = {**SIZES, "model_type": "gemma2", "sliding_window": 9}
    architecture = descriptor(config, where="x")
    early, late = (cache_facts(architecture, config, n, 3) for n in (4, 40))
    layer = 2 * 2 * 8 * 2
    assert early.bytes_per_token_at_context == early.bytes_per_token == 4 * layer
    assert (late.bytes_per_token, late.bytes_per_token_at_context) == (4 * layer, 2 * layer)
    assert late.size_bytes == 3 * (2 * 40 + 2 * 8) * layer
    assert (late.layers, late.window_tokens) == ({"sliding": 2, "full": 2}, 9)


def test_states_do_not_grow() -> None:
    config = {**SIZES, "model_type": "qwen3_next", "decoder_sparse_step": 1}
    architecture = descriptor(config, where="x")
    found = cache_facts(architecture, config, 10, 1)
    assert found.layers == {"linear": 3, "full": 1}
    assert found.size_bytes == found.state_bytes_per_row + 10 * 2 * 2 * 8 * 2
    # 32 value heads of 128 × 128 in fp32, and 4 steps of 8192 channels in bf16.
    assert found.state_bytes_per_row == 3 * (32 * 128 * 128 * 4 + 8192 * 4 * 2)


def test_a_prompt_costs_its_tokens() -> None:
    config = {**SIZES, "model_type": "llama"}
    found = flop_facts(descriptor(config, where="x"), config, 16)
    assert found.prefill_flops == 16 * found.prefill_flops_per_token
    assert (
        found.decode_flops_per_token - found.prefill_flops_per_token == 4 * 4 * 4 * 8
    )  # one more token is attended to
    assert found.prefill_attention_flops_per_token == 4 * 4 * 4 * 8 * 16


@pytest.mark.parametrize(("context", "shown"), [(512, 512), (1 << 20, DEFAULT_CONTEXT)])
def test_the_context_of_a_model_is_bounded(context: int, shown: int) -> None:
    assert default_context(context) == shown


def test_memory_is_weights_and_cache() -> None:
    (need,) = memory_needs({"bf16": 10}, 5)
    assert (need.precision, need.weight_bytes, need.kv_bytes, need.total_bytes) == ("bf16", 10, 5, 15)
