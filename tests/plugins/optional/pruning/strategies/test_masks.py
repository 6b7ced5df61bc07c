"""The strategies that only set weights to zero: shares, patterns, families, refusals, determinism."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError
from apt.evaluation.scoring import divergence
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.decoder.block_work import batches_to_hold_back
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.masks.driver import feed, walk
from apt.plugins.optional.pruning.masks.pattern import fits
from apt.plugins.optional.pruning.strategies.masked import mean_perplexity
from apt.plugins.optional.pruning.streaming.streamed import prune_streamed

STRATEGIES = {
    "magnitude": "MagnitudeStrategy",
    "wanda": "WandaStrategy",
    "sparsegpt": "SparseGPTStrategy",
    "taylor": "TaylorStrategy",
    "unstructured": "UnstructuredStrategy",
    "reconstruct": "ReconstructStrategy",
}

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def strategy(name: str) -> Any:
    return getattr(importlib.import_module(f"apt.plugins.optional.pruning.strategies.{name}"), STRATEGIES[name])()


def model_of(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(GPT2 if family == "gpt2" else SMALL))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # biases and norms that say something
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
            elif "embed" not in name and "wte" not in name:
                parameter *= 4.0
    return model


def text(rows: int = 16, window: int = 24, vocabulary: int = 96) -> Any:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (rows, window), generator=generator)
    return rows_from_ids(ids, source="test", lengths=[window] * (rows - 1) + [window // 2])


def task(model: Any, goal: Goal, effort: Any = "fast", rows: Any = None) -> Task:
    config = model.config.to_dict()
    return Task(model, descriptor(config, where="test"), goal, rows or text(), effort)


@pytest.fixture(scope="module")
def llama() -> Any:
    return model_of("llama")


def weights_of(model: Any) -> list[torch.Tensor]:
    """Every matrix of attention and MLP by its name, not by the role that the strategies go by."""
    architecture = descriptor(model.config.to_dict(), where="test")
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and architecture.component_of(name) in ("attention", "mlp")
    ]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("goal", [Goal(ratio=0.3), Goal(ratio=0.5), Goal(pattern=Pattern(2, 4))], ids=str)
def test_what_is_asked_goes_and_nothing_else_is_touched(llama, name, goal):
    if name == "unstructured" and goal.pattern:
        with pytest.raises(UnsupportedError, match="leaves no budgets to share out"):
            strategy(name).prune(task(llama, goal))
        return
    dense = {key: value.clone() for key, value in llama.state_dict().items()}
    one, two = (strategy(name).prune(task(llama, goal)) for _ in range(2))
    assert one.model is not llama and not one.smaller and one.layers == two.layers
    zeros = sum(int((w == 0).sum()) for w in weights_of(one.model))
    total = sum(w.numel() for w in weights_of(one.model))
    assert one.removed_share == zeros / total
    # Matrices round their own share: each may be half a weight off.
    assert abs(one.removed_share - goal.share) <= 0.5 * len(weights_of(llama)) / total
    if goal.pattern:
        assert all(fits(w != 0, goal.pattern) for w in weights_of(one.model))
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[key])
        assert not value.requires_grad
        if "proj" not in key:
            assert torch.equal(value, dense[key])
    assert all(torch.equal(value, dense[key]) for key, value in llama.state_dict().items())


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"])
@pytest.mark.parametrize("name", ["sparsegpt", "taylor", "unstructured", "reconstruct"])
def test_every_family_and_better_than_magnitude_where_weights_are_fitted(family, name):
    model, goal = model_of(family), Goal(ratio=0.5)
    pruned = strategy(name).prune(task(model, goal))
    assert pruned.removed_share == pytest.approx(0.5, abs=1e-3)
    rows = text()
    plain = strategy("magnitude").prune(task(model, goal))
    distance = divergence(model, pruned.model, rows).kl.value
    assert math.isfinite(distance)
    if name != "taylor":
        assert distance < divergence(model, plain.model, rows).kl.value


def test_full_effort_brings_every_block_nearer_than_fast(llama):
    one = task(llama, Goal(ratio=0.6))
    feeds = feed(llama, one.architecture, one.rows)
    fast, full = (
        walk(llama, one.architecture, feeds, strategy("reconstruct").block_method(0.6, effort))
        for effort in ("fast", "full")
    )
    assert all(after < before for before, after in zip(fast.errors, full.errors, strict=True))
    assert divergence(llama, full.model, one.rows).kl.value < divergence(llama, fast.model, one.rows).kl.value


def test_full_effort_returns_what_does_best_on_rows_held_back(llama, monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.trace.BATCH_TOKENS", 24 * 4)
    rows = text(rows=24)
    pruned = strategy("reconstruct").prune(task(llama, Goal(ratio=0.6), "full", rows))
    again = strategy("reconstruct").prune(task(llama, Goal(ratio=0.6), "full", rows))
    assert pruned.removed_share == pytest.approx(0.6, abs=1e-3)
    assert len(pruned.trials) == 2 and [t.chosen for t in pruned.trials] == [True, False]
    assert pruned.trials[0].perplexity <= pruned.trials[1].perplexity
    fitted, held_back = (rows.take(list(some)) for some in ([*range(16), *range(20, 24)], range(16, 20)))
    assert pruned.held_back_perplexity == pruned.trials[0].perplexity == mean_perplexity(pruned.model, held_back)
    assert pruned.fitted_perplexity == mean_perplexity(pruned.model, fitted)
    assert pruned.trials == again.trials
    assert all(torch.equal(a, b) for a, b in zip(weights_of(pruned.model), weights_of(again.model), strict=True))
    assert all(layer.stream_error is not None for layer in pruned.layers)


@pytest.mark.parametrize("effort", ["light", "fast", "full"])
def test_every_effort_with_hardly_any_text(llama, effort):
    for name in ("reconstruct", "unstructured"):
        pruned = strategy(name).prune(task(llama, Goal(ratio=0.5), effort, text(rows=2)))
        assert pruned.removed_share == pytest.approx(0.5, abs=1e-3)
        assert all(bool(w.isfinite().all()) for w in weights_of(pruned.model))


def test_light_reconstruction_is_wanda(llama):
    light = strategy("reconstruct").prune(task(llama, Goal(ratio=0.5), "light"))
    wanda = strategy("wanda").prune(task(llama, Goal(ratio=0.5)))
    assert all(torch.equal(a, b) for a, b in zip(weights_of(light.model), weights_of(wanda.model), strict=True))


@pytest.mark.parametrize("name", STRATEGIES)
def test_goals_that_zeros_cannot_meet_are_refused(name, llama_dir: Path):
    checkpoint = Checkpoint.open(llama_dir)
    for goal in (Goal(parameters=1000), Goal(size_bytes=1000), Goal(speed=1.5)):
        with pytest.raises(UnsupportedError, match=f"the strategy {name} cannot give .*zeros save neither"):
            strategy(name).preview(checkpoint, goal)
    (plan,) = strategy(name).preview(checkpoint, Goal(ratio=0.5))
    assert (plan.removed_share, plan.parameters) == (0.5, checkpoint.parameters)


def test_a_pattern_that_does_not_fit_is_refused_from_headers(llama_dir: Path):
    checkpoint = Checkpoint.open(llama_dir)
    assert strategy("reconstruct").preview(checkpoint, Goal(pattern=Pattern(4, 8)))[0].removed_share == 0.5
    with pytest.raises(UnsupportedError, match="1:3 does not fit a matrix of 64 inputs"):
        strategy("sparsegpt").preview(checkpoint, Goal(pattern=Pattern(1, 3)))
    with pytest.raises(UnsupportedError, match="leaves no budgets"):
        strategy("unstructured").preview(checkpoint, Goal(pattern=Pattern(2, 4)))


def test_text_beyond_the_vocabulary_is_refused(llama):
    rows = rows_from_ids(torch.full((2, 8), 500), source="elsewhere")
    with pytest.raises(BadInputError, match="'elsewhere' has token ids outside the model's vocabulary of 96"):
        strategy("wanda").prune(task(llama, Goal(ratio=0.5), rows=rows))


@pytest.mark.parametrize("effort", ["light", "fast", "full"])
def test_streamed_holds_back_the_same_batches_as_in_memory(llama_dir: Path, tmp_path: Path, monkeypatch, effort):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.trace.BATCH_TOKENS", 24 * 4)
    checkpoint, goal, rows = Checkpoint.open(llama_dir), Goal(ratio=0.5), text(rows=24, vocabulary=280)
    chosen = strategy("reconstruct")
    plan = chosen.stream_plan(checkpoint, goal, effort=effort, seed=0, settings={})
    told = prune_streamed(checkpoint, tmp_path / "out", plan, rows, lambda _writer, streamed: streamed, options={})
    model = checkpoint.load()
    feeds = feed(model, checkpoint.architecture, rows)
    method = chosen.block_method(0.5, effort)
    held_back = batches_to_hold_back(len(feeds))
    walked = walk(model, checkpoint.architecture, feeds, method, held_back=held_back)
    written = Checkpoint.open(tmp_path / "out").load()
    for one, two in zip(weights_of(written), weights_of(walked.model), strict=True):
        assert torch.equal(one == 0, two == 0)
        assert torch.allclose(one, two, atol=1e-4)
    assert told.removed_share == pytest.approx(0.5, abs=1e-3)
