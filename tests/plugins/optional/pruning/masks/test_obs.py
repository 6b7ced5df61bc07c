"""The exact surgeon against brute force and against torch.linalg.lstsq."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks import obs
from apt.plugins.optional.pruning.masks.obs import descend_support, removal_trace, solve_support


def problem(rows: int, inputs: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6 * inputs, inputs, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    y = torch.randn(6 * inputs, rows, generator=generator, dtype=torch.float64) + x[:, :rows]
    matrix, right = x.T @ x, (x.T @ y).T
    return x, y, matrix, right, torch.linalg.solve(matrix, right.T).T


def objective(weight, matrix, right):
    """Value of ``w'Aw - 2b'w`` of each row."""
    return (weight @ matrix * weight).sum(-1) - 2.0 * (right * weight).sum(-1)


def test_each_removal_is_the_cheapest_and_its_rise_is_exact():
    _, _, matrix, right, weight = problem(3, 6)
    trace = removal_trace(weight, matrix)
    for row in range(3):
        alive = list(range(6))
        reached = objective(weight[row], matrix, right[row])
        for place, rise in zip(trace.order[row].tolist(), trace.rises[row].tolist(), strict=True):
            values = {}
            for candidate in alive:
                keep = torch.zeros(1, 6, dtype=torch.bool)
                keep[0, [i for i in alive if i != candidate]] = True
                values[candidate] = float(
                    objective(solve_support(matrix, right[row : row + 1], keep)[0], matrix, right[row])
                )
            assert place == min(values, key=values.__getitem__)
            assert rise == pytest.approx(values[place] - float(reached), rel=1e-6, abs=1e-9)
            reached = values[place]
            alive.remove(place)


def test_greedy_is_near_to_the_best_mask_of_all():
    _, _, matrix, right, weight = problem(4, 8, seed=1)
    keep = removal_trace(weight, matrix, steps=4).keep(torch.full((4,), 4), 8)
    best = torch.full((4,), torch.inf, dtype=torch.float64)
    for kept in itertools.combinations(range(8), 4):
        mask = torch.zeros(4, 8, dtype=torch.bool)
        mask[:, list(kept)] = True
        best = torch.minimum(best, objective(solve_support(matrix, right, mask), matrix, right))
    dense = objective(weight, matrix, right)
    greedy = objective(solve_support(matrix, right, keep), matrix, right)
    assert bool((greedy >= best - 1e-9).all())
    assert bool((greedy - dense <= 1.5 * (best - dense)).all())


@given(st.integers(0, 50), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_a_pattern_holds_at_every_moment(seed, group, groups, kept):
    kept = min(kept, group - 1)
    pattern = Pattern(kept, group)
    _, _, matrix, _, weight = problem(2, group * groups, seed)
    trace = removal_trace(weight, matrix, pattern=pattern)
    possible = groups * (group - kept)
    assert bool((trace.order[:, :possible] >= 0).all()) and bool((trace.order[:, possible:] == -1).all())
    assert bool(trace.rises[:, possible:].isinf().all())
    for count in range(possible + 1):
        keep = trace.keep(torch.full((2,), count), group * groups)
        assert bool(((~keep).view(-1, group).sum(1) <= group - kept).all())
        assert int((~keep).sum()) == 2 * count


def test_rows_of_their_own_matrices_and_chunks_change_nothing(monkeypatch):
    _, _, matrix, right, _ = problem(5, 7, seed=2)
    keep = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.3
    start = solve_support(matrix, right, keep)
    shared = removal_trace(start, matrix, alive=keep)
    own = removal_trace(start, matrix.expand(5, -1, -1), alive=keep)
    monkeypatch.setattr(obs, "_CHUNK_VALUES", 49)
    small = removal_trace(start, matrix, alive=keep)
    for other in (own, small):
        assert torch.equal(shared.order, other.order)
        assert torch.allclose(shared.rises, other.rises, rtol=1e-9)
    assert torch.allclose(solve_support(matrix.expand(5, -1, -1), right, keep), start)
    assert not bool(keep.gather(1, shared.order.clamp(min=0))[shared.order >= 0].logical_not().any())


def test_the_solution_on_a_support_is_that_of_lstsq():
    x, y, matrix, right, _ = problem(4, 6, seed=3)
    keep = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    found = solve_support(matrix, right, keep)
    for row in range(4):
        index = keep[row].nonzero()[:, 0]
        expected = torch.linalg.lstsq(x[:, index], y[:, row : row + 1]).solution[:, 0]
        assert torch.allclose(found[row, index], expected, rtol=1e-6)
    assert not found[~keep].any()


def test_the_descent_comes_to_the_solution_and_never_goes_up():
    _, _, matrix, right, weight = problem(4, 6, seed=4)
    keep = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) > 0.4
    start = weight * keep
    values = [objective(descend_support(matrix, right, keep, start, n), matrix, right) for n in range(8)]
    for before, after in itertools.pairwise(values):
        assert bool((after <= before + 1e-9 * before.abs()).all())
    assert torch.allclose(
        descend_support(matrix, right, keep, start, 12), solve_support(matrix, right, keep), atol=1e-5
    )
    assert not descend_support(matrix, right, keep, start, 3)[~keep].any()
