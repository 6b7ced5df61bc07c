"""What stock configs refuse is refused before any work, with the reason and what would do."""

import pytest
import torch
import transformers

from apt.checkpoint.architecture import descriptor
from apt.console.errors import UnsupportedError
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.decoder.blocks import sizes_of
from apt.plugins.optional.pruning.structure.cut_to_sizes import cut_to
from apt.plugins.optional.pruning.structure.legality import check, fault, hidden_sizes, nearest_legal, with_hidden

LLAMA = transformers.LlamaConfig(
    vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4,
)  # fmt: skip
GPT2 = transformers.GPT2Config(vocab_size=32, n_embd=64, n_layer=2, n_head=8)


def parts(config):
    settings = config.to_dict()
    architecture = descriptor(settings, where="test")
    return architecture, sizes_of(architecture, settings), settings


def changed(sizes, **changes):
    from dataclasses import replace

    return replace(sizes, **changes)


@pytest.mark.parametrize("change", [{"ff": 0}, {"ff": 97}, {"layers": 3}, {"kv_groups": 5}, {"hidden": 72}])
def test_nothing_grows_or_vanishes(change):
    architecture, before, settings = parts(LLAMA)
    with pytest.raises(UnsupportedError, match="is not between 1 and"):
        check(before, changed(before, **change), architecture, settings, transformers.LlamaConfig)


def test_heads_that_do_not_divide_the_hidden_size():
    architecture, before, settings = parts(LLAMA)
    with pytest.raises(UnsupportedError, match="refuses a hidden size of 64 with 6 heads") as refused:
        check(before, changed(before, kv_groups=3), architecture, settings, transformers.LlamaConfig)
    plans = nearest_legal(before, changed(before, kv_groups=3), architecture)
    assert {p.heads for p in plans} & {4, 8}
    for plan in plans:
        assert plan.describe() in refused.value.hint
        check(before, plan, architecture, settings, transformers.LlamaConfig)
    # The same cut is legal where the config does not ask for it, and with a hidden size that fits.
    check(before, changed(before, kv_groups=3, hidden=48), architecture, settings, transformers.LlamaConfig)
    mistral = transformers.MistralConfig(**{k: v for k, v in settings.items() if k != "model_type"})
    other, sizes, own = parts(mistral)
    check(sizes, changed(sizes, kv_groups=3), other, own, transformers.MistralConfig)


def test_gpt2_loses_heads_and_hidden_size_together():
    architecture, before, settings = parts(GPT2)
    for change in ({"kv_groups": 6}, {"hidden": 48}):
        with pytest.raises(UnsupportedError, match="no head size in its config"):
            check(before, changed(before, **change), architecture, settings, transformers.GPT2Config)
    assert all(not fault(before, with_hidden(before, hidden), architecture) for hidden in hidden_sizes(before))
    check(before, with_hidden(before, 48), architecture, settings, transformers.GPT2Config)
    assert with_hidden(before, 48).heads == 6


def test_the_config_class_has_the_last_word():
    """Phi-3 checks the length of its rotary factors against hidden size and heads, whatever ``head_dim`` says."""
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    config = transformers.Phi3Config(
        vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, rope_parameters=factors, pad_token_id=0,
    )  # fmt: skip
    architecture, before, _ = parts(config)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rows = rows_from_ids(torch.randint(0, 32, (2, 16)), source="test")
    with pytest.raises(UnsupportedError, match=r"the stock config of phi3 refuses these sizes: .*short_factor"):
        cut_to(model, architecture, changed(before, kv_groups=2), rows)
    with torch.no_grad():
        assert cut_to(model, architecture, changed(before, ff=64), rows).model(rows.ids).logits.isfinite().all()


def test_hidden_sizes_suit_kernels():
    _, before, _ = parts(transformers.LlamaConfig(hidden_size=4096, num_attention_heads=32))
    assert all(size % 256 == 0 for size in hidden_sizes(before))
    assert hidden_sizes(before)[:2] == [4096, 3840]


def test_a_multimodal_wrapper_is_refused():
    with pytest.raises(UnsupportedError, match="gemma3"):
        descriptor({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, where="model")
