"""The numerical core against plain float64 linear algebra."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.console.errors import BadInputError
from apt.plugins.optional.pruning.decoder.leastsquares import (
    Gram,
    Problem,
    choose_blocks,
    choose_heads,
    members,
    problem,
    solvable,
)


def make_problem(
    seed: int, inputs: int = 12, outputs: int = 5, tokens: int = 60
) -> tuple[Problem, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    x[:, 3] = x[:, 1] + 0.01 * x[:, 3]  # nearly dependent inputs, as in a real model
    y = torch.randn(tokens, outputs, generator=generator, dtype=torch.float64)
    dense = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    gram = Gram(inputs, outputs)
    for part in range(0, tokens, 17):
        gram.add(x[part : part + 17], y[part : part + 17])
    return problem(gram, dense), x, y, dense


def test_solution_is_that_of_the_float64_normal_equations():
    system, x, y, dense = make_problem(0)
    keep = [0, 1, 4, 5, 8, 11]
    strength = 1e-3 * (x.T @ x).diagonal().mean()
    # The ridge as extra rows of an ordinary least-squares problem, solved by QR.
    rows = torch.cat([x[:, keep], strength.sqrt() * torch.eye(len(keep), dtype=torch.float64)])
    targets = torch.cat([y, strength.sqrt() * dense.T[keep]])
    expected = torch.linalg.lstsq(rows, targets).solution.T
    assert (system.solve(keep) - expected).abs().max() < 1e-10


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 11))
def test_importance_is_the_exact_rise_of_the_objective(seed: int, keep: int):
    system, *_ = make_problem(seed)
    choice = choose_blocks(system, 1, keep)
    everything = system.gain(range(12))
    for index in range(12):
        without = [i for i in range(12) if i != index]
        rise = everything - system.gain(without)
        assert abs(choice.importance[index] - rise) <= 1e-7 * max(1.0, abs(everything))
    assert len(choice.kept) == keep


def test_small_choices_are_exhaustive():
    system, *_ = make_problem(3)
    best = max(itertools.combinations(range(4), 2), key=lambda some: system.gain(members(some, 3)))
    assert choose_blocks(system, 3, 2).kept == best


def test_greedy_choice_equals_greedy_by_solving_anew(monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.leastsquares.MAX_COMBINATIONS", 0)
    system, *_ = make_problem(4)
    alive = list(range(12))
    while len(alive) > 5:
        alive.remove(max(alive, key=lambda i: system.gain([j for j in alive if j != i])))
    assert choose_blocks(system, 1, 5).kept == tuple(alive)


def test_wide_layers_lose_several_inputs_in_a_step(monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.leastsquares.MAX_COMBINATIONS", 0)
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.leastsquares.MAX_STEPS", 2)
    system, *_ = make_problem(5)
    assert len(choose_blocks(system, 1, 5).kept) == 5


def test_heads_stay_in_whole_groups():
    system, *_ = make_problem(6)
    choice = choose_heads(system, head_dim=1, groups=4, per_group=3, keep_groups=2, keep_per_group=3)
    assert len(choice.kept) == 6
    assert {h // 3 for h in choice.kept} == {choice.kept[0] // 3, choice.kept[-1] // 3}
    thinned = choose_heads(system, head_dim=1, groups=4, per_group=3, keep_groups=2, keep_per_group=1)
    assert set(thinned.kept) <= set(choice.kept)
    assert len({h // 3 for h in thinned.kept}) == 2


def test_inputs_that_are_always_zero_keep_the_dense_weights():
    gram = Gram(3, 2)
    gram.add(torch.zeros(4, 3), torch.ones(4, 2))
    dense = torch.arange(6.0).view(2, 3)
    assert torch.allclose(problem(gram, dense).solve([0, 2]), dense[:, [0, 2]].double())


def test_wide_layers_are_solved_in_float32(monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.leastsquares.MAX_COMBINATIONS", 0)
    narrow, x, y, dense = make_problem(7)
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.leastsquares.WIDE", 4)
    gram = Gram(12, 5)
    gram.add(x.float(), y.float())
    wide = problem(gram, dense)
    assert wide.a.dtype == wide.b.dtype == torch.float32
    kept = choose_blocks(wide, 1, 6).kept
    assert kept == choose_blocks(narrow, 1, 6).kept
    assert torch.allclose(wide.solve(kept).double(), narrow.solve(kept), atol=1e-3)


def test_choosing_leaves_the_problem_as_it_was(monkeypatch):
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.leastsquares.MAX_COMBINATIONS", 0)
    system, *_ = make_problem(8)
    before = system.a.clone(), system.b.clone()
    first = choose_blocks(system, 2, 3)
    assert choose_blocks(system, 2, 3) == first
    assert torch.equal(system.a, before[0]) and torch.equal(system.b, before[1])


def test_a_singular_problem_is_told():
    with pytest.raises(BadInputError, match="cannot be solved"), solvable():
        torch.linalg.cholesky(torch.zeros(2, 2))
