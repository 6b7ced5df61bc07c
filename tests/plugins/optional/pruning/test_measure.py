"""Figures against what they are figures of."""

import copy
import math
from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import CheckFailedError
from apt.evaluation.scoring import score_together
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.measure import (
    TextFigures,
    cast_weights,
    gap_nats,
    logit_difference,
    nonzero_parameters,
    probe_logits,
)


@pytest.fixture(scope="module")
def model(llama_dir: Path):
    return Checkpoint.open(llama_dir).load(dtype=torch.float32)


@pytest.fixture(scope="module")
def rows():
    return rows_from_ids(torch.randint(2, 280, (12, 32), generator=torch.Generator().manual_seed(0)), source="t")


def test_the_figures_are_of_the_same_tokens(model, rows):
    worse = copy.deepcopy(model)
    with torch.no_grad():
        worse.model.norm.weight.mul_(3.0)
    found = TextFigures.of(rows, score_together([model, worse], rows)[0])
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(m(rows.ids).logits[:, :-1].flatten(0, 1), rows.ids[:, 1:].flatten())
            for m in (model, worse)
        ]
    assert found.perplexity_before.value == pytest.approx(math.exp(losses[0]), rel=1e-5)
    assert found.ratio.value == pytest.approx(math.exp(losses[1] - losses[0]), rel=1e-5)
    assert found.test.difference.value == pytest.approx(float(losses[1] - losses[0]), abs=1e-5)
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    same = TextFigures.of(rows, score_together([model, model], rows)[0])
    assert gap_nats(found, same) == pytest.approx(found.test.difference.value)
    assert same.test.p == 1.0


def test_zeros_are_counted_in_the_files(new_llama, tmp_path: Path):
    path = new_llama(tmp_path / "m", dtype="bfloat16")
    checkpoint = Checkpoint.open(path)
    loaded = checkpoint.load()
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight[:5] = -0.0
    loaded.save_pretrained(path)
    zeros = sum(int((p == 0).sum()) for p in loaded.parameters())
    assert zeros >= 5 * 32
    assert nonzero_parameters(Checkpoint.open(path)) == checkpoint.parameters - zeros


def test_a_checkpoint_that_computes_something_else_is_seen(model, rows):
    logits = probe_logits(model, rows)
    assert logit_difference(logits, copy.deepcopy(model), rows) == 0.0
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    with pytest.raises(CheckFailedError, match="computes other logits"):
        logit_difference(logits, other, rows)
    with torch.no_grad():
        other.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckFailedError):
        logit_difference(logits, other, rows)


def test_a_model_is_cast_without_its_frequencies(model):
    cast = cast_weights(copy.deepcopy(model), torch.bfloat16)
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
