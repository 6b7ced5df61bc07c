"""The knife: a cut equals masking, sizes are as stated, stock code loads it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import save_model
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.decoder.blocks import Decoder, check_family, sizes_of
from apt.plugins.optional.pruning.decoder.leastsquares import members
from apt.plugins.optional.pruning.decoder.sizes import Sizes, removed_share
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.structure.reconstruct import BlockCut, Calibration, Cut, reconstruct
from apt.plugins.optional.pruning.structure.surgery import build, cut_config

IDS = torch.arange(2, 2 + 3 * 24).view(3, 24) % 90

COMMON = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 12,
    "num_key_value_heads": 3, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
GEMMA3_LAYERS = ["sliding_attention", "full_attention"] * 2
FAMILIES = {
    "llama": ("LlamaConfig", {"head_dim": 8}),
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"head_dim": 8, "sliding_window": 9}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 5}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 9, "layer_types": GEMMA3_LAYERS}),
    "phi3": ("Phi3Config", {"head_dim": 8, "sliding_window": 9, "pad_token_id": 1}),
    "gpt2": ("GPT2Config", {"n_inner": 80, "activation_function": "gelu_new"}),
}
#: Their configs have no head size: heads go only together with the hidden size.
FILLED = ("gpt2",)


def make_model(family: str, **changes):
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    common = {k: v for k, v in COMMON.items() if family not in FILLED or k != "num_key_value_heads"}
    config = getattr(transformers, name)(**{**common, **settings, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms begin as zeros and ones: make them matter
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


def parts_of(model):
    config = model.config.to_dict()
    architecture = descriptor(config, where="test")
    return architecture, sizes_of(architecture, config)


def some_cut(before: Sizes, kept_layers=(0, 2, 3)) -> Cut:
    """Two of three groups, three of four heads in each, 33 of 80 channels, other ones in every layer."""
    after = replace(before, layers=len(kept_layers), ff=33)
    if not before.heads_fill_hidden:
        after = replace(after, kv_groups=2, heads_per_group=3)
    blocks = []
    for layer in kept_layers:
        groups: tuple[int, ...] = tuple(range(before.kv_groups))
        heads = groups
        if not before.heads_fill_hidden:
            groups = ((0, 1), (0, 2), (1, 2))[layer % 3]
            heads = tuple(g * 4 + h for g in groups for h in range(4) if h != (layer + g) % 4)
        channels = tuple(sorted((layer + 3 * c) % 80 for c in range(33)))
        blocks.append(BlockCut(layer, groups, heads, channels, None, None))
    return Cut(before, after, tuple(blocks))


@torch.no_grad()
def mask(model, architecture, cut: Cut):
    """The dense model with the cut parts' outputs zeroed; dropped layers write nothing to the stream."""
    blocks = Decoder.of(model, architecture).blocks
    for layer in range(cut.before.layers):
        block = next((b for b in cut.blocks if b.layer == layer), None)
        matrices = blocks[layer].matrices
        keep_heads = members(block.heads, cut.before.head_dim) if block else []
        keep_channels = block.channels if block else []
        for linear, keep in ((matrices["o"], keep_heads), (matrices["down"], keep_channels)):
            gone = [i for i in range(linear.weight.shape[1]) if i not in set(keep)]
            linear.weight[:, gone] = 0.0
            if block is None and linear.bias is not None:
                linear.bias.zero_()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_equals_masking(family: str):
    model = make_model(family)
    architecture, before = parts_of(model)
    cut = some_cut(before)
    pruned = build(model, architecture, cut)
    # A sliding window goes with its layer, so that dropping one does not move the others'.
    mask(model, architecture, cut)
    with torch.no_grad():
        difference = (pruned(IDS).logits - model(IDS).logits).abs().max()
    assert difference < 1e-5
    assert pruned.config.num_hidden_layers == 3
    if family not in FILLED:
        assert pruned.config.head_dim == before.head_dim
    blocks = Decoder.of(pruned, architecture).blocks
    assert [block.attention.layer_idx for block in blocks] == [0, 1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_weights_go_as_stated_and_nothing_else(family: str):
    model = make_model(family)
    architecture, before = parts_of(model)
    cut = some_cut(before)
    pruned = build(model, architecture, cut)

    def linear(of) -> int:
        named = [(n, p) for n, p in of.named_parameters() if architecture.layer_of(n) is not None]
        return sum(p.numel() for n, p in named if p.ndim == 2)

    assert linear(model) == before.weights
    assert linear(pruned) == cut.after.weights
    assert removed_share(before, cut.after) == 1 - linear(pruned) / linear(model)
    assert torch.equal(pruned.get_input_embeddings().weight, model.get_input_embeddings().weight)
    tied = pruned.get_input_embeddings().weight is pruned.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_entries_per_layer_follow_their_layer():
    model = make_model("qwen2")
    architecture, before = parts_of(model)
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    config = cut_config(model.config.to_dict(), architecture, some_cut(before, (1, 2)))
    assert config["layer_types"] == ["full_attention", "sliding_attention"]
    assert config["max_window_layers"] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropped", [(), (1,), (0, 3)])
def test_an_unmended_pass_measures_what_the_built_model_computes(family: str, dropped: tuple[int, ...]):
    """The streamed pass, with its hooks, and the built model agree: heads of 12 in 3 groups become 6 in 3 or 8 in 2."""
    from apt.evaluation.scoring import score_rows
    from apt.evaluation.texts import rows_from_ids

    model = make_model(family)
    architecture, before = parts_of(model)
    rows = rows_from_ids(IDS, source="test", lengths=[24, 17, 24])
    decoder = Decoder.of(model, architecture)
    batches = trace(decoder, rows)
    widths = ((12, 1),) if family in FILLED else ((3, 2), (2, 4))
    for groups, per_group in widths:
        after = replace(before, layers=4 - len(dropped), kv_groups=groups, heads_per_group=per_group, ff=56)
        for mend in (False, True):
            result = reconstruct(decoder, Calibration(batches), before, after, dropped, mend=mend)
            scores = score_rows(build(model, architecture, result.cut), rows)
            assert abs(result.loss - scores.nll.sum() / scores.tokens.sum()) < 1e-5
            assert result.cut.dropped == dropped


def test_nothing_cut_nothing_changed():
    model = make_model("llama")
    architecture, before = parts_of(model)
    from apt.evaluation.texts import rows_from_ids

    decoder = Decoder.of(model, architecture)
    batches = trace(decoder, rows_from_ids(IDS, source="test"))
    result = reconstruct(decoder, Calibration(batches), before, before, ())
    with torch.no_grad():
        assert (build(model, architecture, result.cut)(IDS).logits - model(IDS).logits).abs().max() < 1e-5
    assert result.cut.blocks[-1].stream_error < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_mending_lowers_the_error_of_every_block(family: str):
    model = make_model(family)
    architecture, before = parts_of(model)
    from apt.evaluation.texts import rows_from_ids

    decoder = Decoder.of(model, architecture)
    batches = trace(decoder, rows_from_ids(IDS, source="test"))
    after = replace(before, kv_groups=before.kv_groups if family in FILLED else 2, ff=48)
    mended, plain = (reconstruct(decoder, Calibration(batches), before, after, (), mend=m) for m in (True, False))
    for better, worse in zip(mended.cut.blocks, plain.cut.blocks, strict=True):
        assert better.stream_error < worse.stream_error


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stock_process_loads_it_with_equal_logits(new_llama, tmp_path: Path, dtype: str):
    parent = Checkpoint.open(new_llama(tmp_path / "dense", dtype=dtype))
    model = parent.load()
    cut = Cut(
        *[sizes := sizes_of(parent.architecture, parent.config), Sizes(32, 8, 2, 1, 2, 40)],
        tuple(BlockCut(layer, (1,), (2, 3), tuple(range(24, 64)), None, None) for layer in (0, 2)),
    )
    assert sizes.layers == 3
    pruned = build(model, parent.architecture, cut)
    assert pruned.dtype == model.dtype
    save_model(pruned, tmp_path / "cut", operation="prune", parent=parent, options={}, metrics={})
    with torch.no_grad():
        torch.save(pruned(IDS).logits, tmp_path / "logits.pt")
    script = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/cut').eval()\n"
        "ids = torch.arange(2, 2 + 3 * 24).view(3, 24) % 90\n"
        "wanted = torch.load(sys.argv[1] + '/logits.pt')\n"
        "with torch.no_grad():\n    assert torch.equal(model(ids).logits, wanted)\n"
        "assert len(model.generate(ids[:1, :4], max_new_tokens=5, do_sample=False)[0]) == 9\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 8)
    assert config["dtype"] == dtype


def test_other_families_and_unknown_tensors_are_refused():
    with pytest.raises(UnsupportedError, match="does not know the architecture 'olmo2'"):
        check_family(descriptor({"model_type": "olmo2"}, where="x"))
    model = make_model("llama")
    architecture, before = parts_of(model)
    model.model.layers[0].self_attn.register_parameter("sinks", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(UnsupportedError, match=r"no rule for the tensor 'model\.layers\.0\.self_attn\.sinks'"):
        build(model, architecture, some_cut(before))
