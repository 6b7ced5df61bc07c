"""Masks by magnitude: how many go, which of them, in which groups; and zeros that are held while training."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apt.checkpoint.architecture import descriptor
from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.weights import LinearWeight, apply, linear_weights, smallest
from apt.plugins.optional.pruning.masks.zeros import KeepZeros, zero_share, zeros_of


def matrix(name: str, *shape: int, transposed: bool = False, scale: float = 1.0, seed: int = 0) -> LinearWeight:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return LinearWeight(name, 0, nn.Parameter(weight), transposed)


@given(st.floats(0.0, 1.0), st.integers(0, 99))
def test_as_many_go_as_were_asked_for_and_they_are_the_smallest(share: float, seed: int) -> None:
    one = matrix("a", 6, 8, seed=seed)
    gone = smallest([one], share, pattern=None, scope="matrix")["a"]
    assert int(gone.sum()) == round(share * 48)
    magnitudes = one.weight.detach().abs()
    if 0 < int(gone.sum()) < 48:
        assert magnitudes[gone].max() <= magnitudes[~gone].min()


def test_all_matrices_together_lose_more_of_the_smaller_one() -> None:
    both = [matrix("small", 8, 8, scale=0.001), matrix("large", 8, 8, scale=1000.0)]
    gone = smallest(both, 0.5, pattern=None, scope="global")
    assert int(gone["small"].sum()) == 64 and not gone["large"].any()
    gone = smallest(both, 0.5, pattern=None, scope="matrix")
    assert int(gone["small"].sum()) == int(gone["large"].sum()) == 32


@pytest.mark.parametrize("transposed", [False, True])
def test_a_pattern_is_kept_along_the_inputs(transposed: bool) -> None:
    one = matrix("a", 12, 8, transposed=True) if transposed else matrix("a", 8, 12)
    half = smallest([one], 0.25, pattern=Pattern(2, 4), scope="matrix")["a"]
    whole = smallest([one], 0.5, pattern=Pattern(2, 4), scope="global")["a"]
    assert int(half.sum()) == 24 and not bool((half & ~whole).any())
    groups = (whole.T if transposed else whole).reshape(-1, 4)
    assert bool((groups.sum(1) == 2).all())


def test_zeros_stay_among_the_smallest_as_the_share_rises() -> None:
    one = matrix("a", 8, 8)
    first = smallest([one], 0.3, pattern=None, scope="matrix")
    apply([one], first)
    with torch.no_grad():
        one.weight.mul_(0.5)
    second = smallest([one], 0.6, pattern=None, scope="matrix")
    assert bool((second["a"] | ~first["a"]).all())


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Muon])
def test_an_optimizer_with_momentum_leaves_held_zeros_alone(make: Any) -> None:
    one = matrix("a", 8, 8)
    apply([one], smallest([one], 0.5, pattern=None, scope="matrix"))
    held = KeepZeros(zeros_of([one.weight]))
    optimizer = make([one.weight], lr=0.1)
    nothing: Any = None
    held.on_train_begin(nothing, nothing, nothing)
    before = one.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        (one.weight.sum() * (step + 1)).backward()
        held.on_pre_optimizer_step(nothing, nothing, nothing)
        optimizer.step()
        held.on_optimizer_step(nothing, nothing, nothing)
        assert zero_share([one.weight]) == 0.5
        assert bool((one.weight[before == 0] == 0).all())
    assert bool((one.weight != before)[before != 0].all())


def test_matrices_without_a_zero_are_not_held() -> None:
    full, holed = matrix("a", 4, 4), matrix("b", 4, 4)
    apply([holed], smallest([holed], 0.25, pattern=None, scope="matrix"))
    assert list(zeros_of([full.weight, holed.weight])) == [holed.weight]
    assert zero_share([full.weight, holed.weight]) == 0.125


def test_the_matrices_of_gpt2_are_turned() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    found = linear_weights(model, descriptor(config.to_dict(), where="test"))
    assert len(found) == 8 and all(m.transposed for m in found)
    assert {m.layer for m in found} == {0, 1}
