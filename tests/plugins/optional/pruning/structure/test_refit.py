"""Refitting whole blocks: nearer to the dense model than least squares, deterministic, never worse than its start."""

from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.scoring import score_rows
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.strategies.structured import StructuredStrategy
from apt.plugins.optional.pruning.structure import refit as module
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, mean_loss, reconstruct
from apt.plugins.optional.pruning.structure.surgery import build


@pytest.fixture
def setting(llama_dir: Path):
    checkpoint = Checkpoint.open(llama_dir)
    torch.manual_seed(2)
    rows = rows_from_ids(torch.randint(2, 280, (40, 64)), source="test", lengths=[64] * 39 + [40])
    return checkpoint, checkpoint.load(), rows


def test_every_block_comes_nearer_to_the_dense_stream(setting):
    checkpoint, model, rows = setting
    decoder = Decoder.of(model, checkpoint.architecture)
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    batches = trace(decoder, rows)
    cut = reconstruct(decoder, Calibration(batches), before, Sizes(32, 8, 2, 1, 2, 24), (1,)).cut
    pruned = build(model, checkpoint.architecture, cut)
    told = module.refit(Decoder.of(pruned, checkpoint.architecture), cut, batches)
    assert all(error < block.stream_error for error, block in zip(told.errors, cut.blocks, strict=True))
    # The streams that were passed along are those of the refitted model itself.
    scores = score_rows(pruned, rows)
    assert abs(mean_loss(decoder, batches, told.streams) - scores.nll.sum() / scores.tokens.sum()) < 1e-5


def test_full_effort_is_deterministic_and_counts_alike(setting):
    checkpoint, model, rows = setting
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    some = rows.take(range(12))  # a quarter of the time: both searches and refits run whole
    task = Task(model, checkpoint.architecture, Goal(ratio=0.25), some, "full")
    one, two = (StructuredStrategy().prune(task) for _ in range(2))
    assert one.removed_share == two.removed_share and one.layers == two.layers
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name])
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    assert one.trials[0].chosen


def test_a_failed_refit_keeps_the_mended_weights(setting, monkeypatch):
    checkpoint, model, rows = setting
    decoder = Decoder.of(model, checkpoint.architecture)
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    batches = trace(decoder, rows)
    cut = reconstruct(decoder, Calibration(batches), before, Sizes(32, 8, 3, 2, 2, 24), ()).cut
    pruned = build(model, checkpoint.architecture, cut)
    mended = {name: value.clone() for name, value in pruned.state_dict().items()}

    def diverge(self, _closure) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data.mul_(float("nan"))

    monkeypatch.setattr(torch.optim.LBFGS, "step", diverge)
    module.refit(Decoder.of(pruned, checkpoint.architecture), cut, batches)
    assert all(torch.equal(value, mended[name]) for name, value in pruned.state_dict().items())
