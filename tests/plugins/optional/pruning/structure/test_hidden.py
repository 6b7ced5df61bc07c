"""Fewer channels in the residual stream, in every family."""

import pytest
import torch
import transformers

from apt.checkpoint.architecture import descriptor
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.strategies.structured import StructuredStrategy
from apt.plugins.optional.pruning.structure.cut_to_sizes import cut_to
from apt.plugins.optional.pruning.structure.hidden import Widths, choose_channels
from apt.plugins.optional.pruning.structure.legality import with_hidden
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, mean_loss

COMMON = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
PLAIN = {k: v for k, v in COMMON.items() if k not in ("num_key_value_heads", "head_dim")}
GEMMA = {**COMMON, "sliding_window": 9, "query_pre_attn_scalar": 5}
FAMILIES = {
    "llama": transformers.LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True),
    "llama-tied": transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**COMMON),
    "qwen2": transformers.Qwen2Config(**COMMON),
    "qwen3": transformers.Qwen3Config(**COMMON, tie_word_embeddings=True),
    "gemma": transformers.GemmaConfig(**COMMON),
    "gemma2": transformers.Gemma2Config(**GEMMA),
    "gemma2-untied": transformers.Gemma2Config(**GEMMA, tie_word_embeddings=False),
    "gemma3": transformers.Gemma3TextConfig(**GEMMA),
    "phi3": transformers.Phi3Config(**COMMON, pad_token_id=1),
    "gpt2": transformers.GPT2Config(**{**PLAIN, "n_inner": PLAIN["intermediate_size"], "num_attention_heads": 6}),
}
IDS = torch.randint(2, 96, (8, 48), generator=torch.Generator().manual_seed(3))
ROWS = rows_from_ids(IDS, source="test")


def make_model(family: str):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    config = model.config.to_dict()
    architecture = descriptor(config, where="test")
    return model, architecture, sizes_of(architecture, config)


@torch.no_grad()
def kill_channels(model, architecture, dead: list[int]) -> None:
    """Make channels that are always zero: nothing writes them."""
    for name in (architecture.embedding, *architecture.other_embeddings):
        model.get_submodule(name.removesuffix(".weight")).weight[:, dead] = 0.0
    for block in Decoder.of(model, architecture).blocks:
        for role in ("o", "down"):
            block.matrices[role].weight[dead] = 0.0
            if block.matrices[role].bias is not None:
                block.matrices[role].bias[dead] = 0.0


@torch.no_grad()
def apart(model, other) -> float:
    difference, logits = (model(IDS).logits - other(IDS).logits), other(IDS).logits
    return float(difference.square().sum() / logits.square().sum())


@pytest.mark.parametrize("mend", [False, True])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_channels_that_are_always_zero_cost_nothing(family: str, mend: bool):
    """RMSNorms, post-norms, Gemma's embedding scale, tied and untied heads: all are compensated exactly."""
    model, architecture, before = make_model(family)
    dead = [0, 5, 17, 18, 30, 31, 40, 47]
    kill_channels(model, architecture, dead)
    made = cut_to(model, architecture, with_hidden(before, 40), ROWS, mend=mend)
    assert sorted(set(range(48)) - set(made.channels)) == dead
    assert made.model.config.hidden_size == 40
    assert apart(made.model, model) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_mending_brings_the_logits_nearer(family: str):
    model, architecture, before = make_model(family)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    after = with_hidden(before, 40)
    mended, plain = (cut_to(model, architecture, after, ROWS, mend=m).model for m in (True, False))
    assert apart(mended, model) < 0.8 * apart(plain, model)
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    tied = mended.get_input_embeddings().weight is mended.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_narrow_streams_are_those_of_the_stock_model(family: str):
    """The targets of later passes belong to the model that is built, and a cut of other axes goes on from them."""
    model, architecture, before = make_model(family)
    made = cut_to(model, architecture, with_hidden(before, 40), ROWS)
    (batch,) = made.calibration.batches
    (own,) = trace(Decoder.of(made.model, architecture), ROWS)
    assert torch.allclose(batch.streams[0], own.streams[0], atol=1e-5)
    assert batch.streams[-1].shape == own.streams[-1].shape
    with torch.no_grad():
        loss = mean_loss(Decoder.of(made.model, architecture), [batch], [own.streams[-1]])
        logits = made.model(IDS).logits[:, :-1].flatten(0, 1)
    assert abs(loss - float(torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten()))) < 1e-4


def test_what_is_read_most_stays():
    model, architecture, _ = make_model("llama")
    batches = trace(Decoder.of(model, architecture), ROWS)
    with torch.no_grad():
        for block in Decoder.of(model, architecture).blocks:
            for role in ("q", "k", "v", "gate", "up"):
                block.matrices[role].weight[:, [3, 9]] = 0.0
        model.lm_head.weight[:, [3, 9]] = 0.0
    kept = choose_channels(Decoder.of(model, architecture), architecture, batches, 46)
    assert sorted(set(range(48)) - set(kept)) == [3, 9]


@pytest.mark.parametrize("effort", ["fast", "full"])
def test_the_search_finds_channels_that_nobody_uses(effort: str):
    """Attention, MLP and layers are all needed, a quarter of the channels is not: the hidden size goes, exactly."""
    model, architecture, _ = make_model("llama-tied")
    kill_channels(model, architecture, list(range(0, 48, 4)))
    said = model.generate(IDS.view(-1, 4), max_new_tokens=28, do_sample=False, eos_token_id=None)
    task = Task(model, architecture, Goal(ratio=0.25), rows_from_ids(said, source="its own text"), effort)
    pruned = StructuredStrategy().prune(task)
    assert pruned.model.config.hidden_size == 36 and pruned.plan.startswith("hidden 36, 3 layers")
    assert pruned.removed_share == pytest.approx(0.25)
    assert all(layer.removed_share == pytest.approx(0.25) for layer in pruned.layers)
    assert apart(pruned.model, model) < 1e-4


def test_the_last_width_is_kept_and_no_other():
    model, architecture, before = make_model("gemma2")
    decoder = Decoder.of(model, architecture)
    widths = Widths(decoder, architecture, Calibration(trace(decoder, ROWS)), before)
    assert widths.at(48) is widths.dense
    first = widths.at(40)
    assert widths.at(40) is first and first.sizes == with_hidden(before, 40) and len(first.channels) == 40
    assert widths.at(36).sizes.hidden == 36
    assert widths.at(40) is not first
