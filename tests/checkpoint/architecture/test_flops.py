"""Closed formulas against torch's own count of a forward pass on the meta device."""

from pathlib import Path
from typing import Any

import pytest

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.architecture.flops import active_parameters, decode_flops, prefill_flops
from tests.checkpoint.architecture.conftest import CASES, SMALL, Built, build_case

#: Cases without windows: torch counts what a windowed layer masks, the formula does not.
COUNTED = [
    "llama-mha", "llama-gqa-biases", "llama-mqa-tied", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "gpt2",
    "gpt_neox", "stablelm", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe-mixed", "deepseek_v2-full-rank",
]  # fmt: skip


def counted_flops(case: str, tokens: int) -> tuple[dict[str, Any], int]:
    """Return the config and what torch counts for a prompt of ``tokens``."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    family, changes = CASES[case]
    # Experts as one batched product: the default chooses tokens by value, which meta tensors do not have.
    config = AutoConfig.for_model(family, **{**SMALL, **changes}, experts_implementation="batched_mm")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        ids = torch.zeros(1, tokens, dtype=torch.long)
        mask = torch.zeros(1, 1, tokens, tokens)  # given, so that none is made by looking at values
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return config.to_dict(), counter.get_total_flops()


@pytest.mark.parametrize("case", COUNTED)
def test_prefill_equals_the_flop_counter(case: str) -> None:
    config, counted = counted_flops(case, 24)
    found = prefill_flops(descriptor(config, where="x"), config, 24)
    assert found.per_token * 24 == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "case", [c for c in COUNTED if "moe" not in c and c not in ("mixtral", "deepseek_v2-full-rank")]
)
def test_decoding_a_token_equals_the_counter_on_a_cache(case: str, tmp_path: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    built = build_case(case, tmp_path)
    built.model.set_attn_implementation("eager")  # torch does not count its fused attention on the CPU
    with torch.no_grad():
        cache = built.model(input_ids=torch.ones(1, 11, dtype=torch.long), use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            built.model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    found = decode_flops(descriptor(built.config, where="x"), built.config, 12)
    assert found.per_token == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_active_parameters_leave_out_the_experts_that_are_not_visited(built: Built) -> None:
    architecture = descriptor(built.config, where="x")
    total = sum(p.numel() for p in built.model.parameters())
    experts = architecture.dimensions(built.config).experts
    idle = sum(p.numel() for n, p in built.model.named_parameters() if ".experts." in n)
    expected = total if experts is None else total - idle * (experts.count - experts.per_token) // experts.count
    assert active_parameters(architecture, built.config, total) == expected


def test_a_window_bounds_attention() -> None:
    family, changes = CASES["mistral-window"]
    config = {**SMALL, **changes, "model_type": family}
    architecture = descriptor(config, where="x")
    at_window, beyond = (decode_flops(architecture, config, n).attention_per_token for n in (8, 60))
    assert at_window == beyond == 4 * 4 * 8 * 8 * 4
