"""SparseGPT: closed forms, shares, patterns, and what the update is worth."""

import itertools

import pytest
import torch

from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.pattern import fits, keep_of_groups, keep_of_rows
from apt.plugins.optional.pruning.masks.sparsegpt import sparsegpt


def problem(rows: int, inputs: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(8 * inputs, inputs, generator=generator) @ mixing
    return torch.randn(rows, inputs, generator=generator), (x.T @ x).double()


def error(weight, other, gram) -> float:
    apart = (weight - other).double()
    return float((apart @ gram * apart).sum())


def test_one_removal_is_the_closed_form():
    """One weight of the first column goes: the optimal brain surgeon's answer, exactly."""
    weight, gram = problem(1, 4)
    weight[0, 0] = 1e-3  # the cheapest of its row
    found = sparsegpt(weight, gram, 0.25, damp=0.0)
    inverse = torch.linalg.inv(gram)
    expected = weight.double() - inverse[0] * (weight[0, 0].double() / inverse[0, 0])
    expected[0, 0] = 0.0
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert found[0, 0] == 0.0


def test_the_update_left_to_right_is_the_best_for_what_is_to_the_right():
    """Of all ways to make up for the first column with those after it, none is better."""
    weight, gram = problem(3, 5, seed=1)
    weight[:, 0] = 1e-4
    found = sparsegpt(weight, gram, 1 / 5, damp=0.0)
    right = weight[:, 1:].double() + weight[:, :1].double() * (gram[:1, 1:] @ torch.linalg.inv(gram[1:, 1:]))
    assert torch.allclose(found[:, 1:].double(), right, atol=1e-4)


@pytest.mark.parametrize("wanted", [0.5, Pattern(2, 4)])
def test_it_is_near_to_the_best_mask_of_all(wanted):
    weight, gram = problem(1, 8, seed=2)
    found = sparsegpt(weight, gram, wanted, damp=0.0)
    best = float("inf")
    for kept in itertools.combinations(range(8), 4):
        keep = torch.zeros(1, 8, dtype=torch.bool)
        keep[0, list(kept)] = True
        if isinstance(wanted, Pattern) and not fits(keep, wanted):
            continue
        index = torch.tensor(kept)
        solved = torch.zeros(1, 8, dtype=torch.float64)
        solved[0, index] = torch.linalg.solve(gram[index][:, index], gram[index] @ weight[0].double())
        best = min(best, error(weight, solved, gram))
    masked = weight * (keep_of_groups if isinstance(wanted, Pattern) else keep_of_rows)(weight.abs(), wanted)
    assert best - 1e-6 <= error(weight, found, gram) < error(weight, masked, gram)


@pytest.mark.parametrize("block", [3, 4, 16, 128])
def test_shares_and_patterns_hold_in_any_blocks(block):
    weight, gram = problem(7, 24, seed=3)
    for ratio in (0.0, 0.3, 0.5, 0.77, 1.0):
        assert int((sparsegpt(weight, gram, ratio, block=block) == 0).sum()) == round(ratio * weight.numel())
    found = sparsegpt(weight, gram, Pattern(4, 8), block=block)
    assert fits(found != 0, Pattern(4, 8))
    assert int((found == 0).sum()) == weight.numel() // 2


def test_the_lazy_update_is_the_immediate_one():
    """The blocks only say when an update is made, not what it is; with a pattern they choose nothing either."""
    weight, gram = problem(5, 32, seed=4)
    one = sparsegpt(weight, gram, Pattern(2, 4), block=4)
    assert torch.allclose(one, sparsegpt(weight, gram, Pattern(2, 4), block=32), atol=1e-4)


def test_inputs_that_are_never_there_lose_their_weights():
    weight, gram = problem(4, 6, seed=5)
    gram[2], gram[:, 2] = 0.0, 0.0
    found = sparsegpt(weight, gram, 0.5)
    assert bool(found.isfinite().all())
    assert not found[:, 2].any()
