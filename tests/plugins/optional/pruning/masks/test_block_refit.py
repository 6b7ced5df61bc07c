"""Refits of masked blocks, and masks in stages: never worse, zeros stay zeros, the same every time."""

import pytest
import torch

from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks import refit
from apt.plugins.optional.pruning.masks.gradual import is_affordable, prune_gradually
from apt.plugins.optional.pruning.masks.linear import output_of
from apt.plugins.optional.pruning.masks.pattern import fits
from apt.plugins.optional.pruning.masks.refit import refit_block, sensitivity
from apt.plugins.optional.pruning.masks.sequential import obs_mask, prune_sequentially


def least_squares(work, wanted=0.5):
    prune_sequentially(work, lambda _role, best, matrix: obs_mask(best, matrix, wanted))


def block_error(work, batches) -> float:
    with torch.no_grad():
        parts = [
            ((output_of(work.block, work.streams[i], work.calls[i]) - work.dense_outputs[i])[work.valid[i]], i)
            for i in batches
        ]
        square = sum(float((work.dense_outputs[i] - work.streams[i])[work.valid[i]].square().sum()) for i in batches)
    return sum(float(part.square().sum()) for part, _ in parts) / square


@pytest.mark.parametrize("own", [True, False])
def test_the_error_falls_and_zeros_stay(with_work, monkeypatch, own):
    if not own:  # as in a block whose matrices are wide
        monkeypatch.setattr("apt.plugins.optional.pruning.masks.fisher.ROW_VALUES", 0)

    def check(work):
        least_squares(work)
        masks = {role: m.weight.detach() != 0 for role, m in work.matrices.items()}
        before = block_error(work, work.fitting)
        told = refit_block(work, steps=10)
        after = block_error(work, work.fitting)
        assert told.fitted_before == pytest.approx(before, rel=1e-4)
        assert told.kept and told.fitted_after == pytest.approx(after, rel=1e-4)
        assert after < 0.95 * before
        assert told.held_back_after <= told.held_back_before
        for role, module in work.matrices.items():
            assert not module.weight[~masks[role]].any()
            assert bool((module.weight != 0)[masks[role]].all())
            assert not module.weight.bfloat16()[~masks[role]].any()
            assert module.weight.grad is None

    with_work(check)


def test_a_refit_that_fails_or_does_not_carry_over_is_taken_back(with_work, monkeypatch):
    def diverge(self, _closure) -> None:
        for z in self.param_groups[0]["params"]:
            z.data.fill_(float("nan"))

    def check(work):
        least_squares(work)
        start = {name: value.clone() for name, value in work.block.state_dict().items()}
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.LBFGS, "step", diverge)
            assert not refit_block(work).kept
        assert all(torch.equal(value, start[name]) for name, value in work.block.state_dict().items())
        with monkeypatch.context() as patch:  # worse on the rows held back
            errors = iter([1.0, 1.1])
            patch.setattr(refit, "_error", lambda *_: next(errors))
            assert not refit_block(work, steps=2).kept
        assert all(torch.equal(value, start[name]) for name, value in work.block.state_dict().items())

    with_work(check)


def test_the_sensitivity_predicts_small_changes(with_work):
    """The Gauss-Newton blocks tell how far the output moves when a row of weights does."""

    def check(work):
        blocks = sensitivity(work)["up"].blocks(0.0)
        module = work.matrices["up"]
        with torch.no_grad():
            outputs = [output_of(work.block, work.streams[i], work.calls[i]) for i in work.fitting]
        square = sum(
            float((work.dense_outputs[i] - work.streams[i])[work.valid[i]].square().sum()) for i in work.fitting
        )
        predicted, measured = [], []
        for row in range(0, 64, 4):
            step = 1e-2 * torch.randn(32, generator=torch.Generator().manual_seed(row))
            kept = module.weight[row].clone()
            with torch.no_grad():
                module.weight[row] += step
                moved = [
                    (output_of(work.block, work.streams[i], work.calls[i]) - outputs[i])[work.valid[i]].square().sum()
                    for i in work.fitting
                ]
                module.weight[row] = kept
            measured.append(float(sum(moved)) / square)
            predicted.append(float(step.double() @ blocks[row] @ step.double()))
        ratio = torch.tensor(predicted) / torch.tensor(measured)
        assert float(ratio.min()) > 0.5 and float(ratio.max()) < 2.0
        assert float(ratio.mean()) == pytest.approx(1.0, abs=0.25)

    with_work(check)


@pytest.mark.parametrize("wanted", [0.6, Pattern(2, 4)])
def test_stages_reach_the_share_exactly_and_beat_one_cut(with_work, wanted):
    def check(work):
        start = {name: value.clone() for name, value in work.block.state_dict().items()}
        assert is_affordable(work)
        least_squares(work, wanted)
        refit_block(work)
        one_cut = block_error(work, work.fitting)
        results = []
        for _ in range(2):
            work.block.load_state_dict(start)
            prune_gradually(work, wanted)
            results.append({role: m.weight.detach().clone() for role, m in work.matrices.items()})
        total = sum(w.numel() for w in results[0].values())
        share = wanted.share if isinstance(wanted, Pattern) else wanted
        assert sum(int((w == 0).sum()) for w in results[0].values()) == round(share * total)
        if isinstance(wanted, Pattern):
            assert all(fits(w != 0, wanted) for w in results[0].values())
        assert block_error(work, work.fitting) < one_cut
        for role, weight in results[0].items():
            assert torch.equal(weight, results[1][role])

    with_work(check)


def test_wide_blocks_are_not_for_the_stages(with_work, monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.masks.fisher.TRACE_INPUTS", 32)
    with_work(lambda work: None if not is_affordable(work) else pytest.fail("down has 64 inputs"))
