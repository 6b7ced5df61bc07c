"""Cache arithmetic against the caches that transformers makes."""

from typing import Any

import pytest

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.architecture.cache import sequence_cache
from tests.checkpoint.architecture.conftest import Built


def held_bytes(cache: Any) -> int:
    """Bytes of every tensor that a cache's layers keep."""
    import torch

    total = 0
    for layer in cache.layers:
        for name in ("keys", "values"):
            value = getattr(layer, name, None)
            total += value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
        for name in ("conv_states", "recurrent_states"):
            total += sum(t.numel() * t.element_size() for t in getattr(layer, name, {}).values() if t is not None)
    return total


@pytest.mark.parametrize("tokens", [5, 20])
def test_a_cache_is_as_large_as_the_real_one(built: Built, tokens: int) -> None:
    import torch

    with torch.no_grad():
        given = torch.arange(tokens)[None] % 64
        cache = built.model(input_ids=given, use_cache=True).past_key_values
    architecture = descriptor(built.config, where="x")
    assert sequence_cache(architecture, built.config, tokens).size_bytes(4) == held_bytes(cache)


def test_a_token_adds_what_the_descriptor_says(built: Built) -> None:
    architecture = descriptor(built.config, where="x")
    two, three = (sequence_cache(architecture, built.config, n).size_bytes(2) for n in (2, 3))
    assert architecture.kv_bytes_per_token(built.config) == three - two


def test_states_stay_fp32_when_the_model_does_not() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.checkpoint.architecture.conftest import CASES, SMALL

    family, changes = CASES["qwen3_next"]
    config = AutoConfig.for_model(family, **{**SMALL, **changes})
    model = AutoModelForCausalLM.from_config(config).eval().to(torch.bfloat16)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(1, 9, dtype=torch.long), use_cache=True).past_key_values
    settings = config.to_dict()
    assert sequence_cache(descriptor(settings, where="x"), settings, 9).size_bytes(2) == held_bytes(cache)
