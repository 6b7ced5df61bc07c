"""Legal sizes, and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.decoder.sizes import Sizes, removed_share
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.structure.legality import narrower
from apt.plugins.optional.pruning.structure.plans import SLACK, TOLERANCE, cost_budget, nearest, shapes, weights_budget
from apt.plugins.optional.pruning.structure.search import MAX_SHAPES, legal_shapes

TINY = Sizes(hidden=256, head_dim=32, layers=6, kv_groups=4, heads_per_group=2, ff=512)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([16, 48, 64, 256]), st.sampled_from([4, 8, 16]), st.integers(1, 6), st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 3), st.sampled_from([32, 64, 96, 172, 512]), st.floats(0.05, 0.7),
)  # fmt: skip
def test_every_shape_is_legal_and_removes_what_was_asked(hidden, head_dim, layers, groups, per_group, ff, ratio):
    before = Sizes(hidden, head_dim, layers, groups, per_group, ff)
    for after in shapes(before, weights_budget(before, ratio), heads_divide_hidden=True):
        assert hidden % after.heads == 0
        assert 0 < after.ff <= ff and 0 < after.layers <= layers
        assert 0 < after.kv_groups <= groups and 0 < after.heads_per_group <= per_group
        assert abs(removed_share(before, after) - ratio) <= TOLERANCE + SLACK


def test_widths_of_tiny_suit_q8_0():
    found = shapes(TINY, weights_budget(TINY, 0.25), heads_divide_hidden=True)
    assert found
    assert all(s.ff % 32 == 0 for s in found)
    assert Sizes(256, 32, 6, 4, 2, 320) in found


def test_three_groups_of_two_heads_are_refused_where_the_config_would_refuse_them():
    assert all(s.heads in (1, 2, 4, 8) for s in shapes(TINY, weights_budget(TINY, 0.3), heads_divide_hidden=True))
    assert any(s.heads == 6 for s in shapes(TINY, weights_budget(TINY, 0.3), heads_divide_hidden=False))


def test_an_impossible_ratio_is_refused_with_the_nearest_plans():
    one_layer = Sizes(hidden=256, head_dim=32, layers=1, kv_groups=1, heads_per_group=1, ff=4)
    with pytest.raises(UnsupportedError, match=r"no legal cut removes 25\.0%") as refused:
        legal_shapes(one_layer, weights_budget(one_layer, 0.25), Goal(ratio=0.25), heads_divide_hidden=True)
    assert "the nearest: 6.4% (hidden 256, 1 layers, 1 heads, 1 KV groups, ff 1)" in refused.value.hint
    assert nearest(TINY, weights_budget(TINY, 0.5), heads_divide_hidden=True)[0].weights == TINY.weights // 2


def test_wide_models_give_a_short_list():
    wide = Sizes(hidden=4096, head_dim=128, layers=32, kv_groups=8, heads_per_group=4, ff=14336)
    found = legal_shapes(wide, weights_budget(wide, 0.25), Goal(ratio=0.25), heads_divide_hidden=True)
    assert 4 <= len(found) <= MAX_SHAPES
    assert all(s.ff % 256 == 0 for s in found)


@pytest.mark.parametrize("limit", [0.4, 0.71, 0.95])
def test_a_size_that_was_asked_for_is_kept(limit):
    """Any cost that grows with the sizes can be the budget; nothing costs more than the limit."""

    def cost(sizes: Sizes) -> int:
        return 100_000 + sizes.weights + 2 * 256 * sizes.layers

    budget = cost_budget(cost, TINY, round(limit * cost(TINY)))
    found = shapes(TINY, budget, heads_divide_hidden=True)
    assert found
    assert all(budget.limit - TOLERANCE * cost(TINY) <= cost(s) <= budget.limit for s in found)


def test_a_goal_that_the_dense_model_meets_is_refused():
    budget = cost_budget(lambda s: s.weights, TINY, TINY.weights + 5)
    with pytest.raises(UnsupportedError, match="no more than"):
        legal_shapes(TINY, budget, Goal(parameters=TINY.weights + 5), heads_divide_hidden=True)


def test_a_width_that_suits_no_kernel_gives_every_width():
    odd = Sizes(hidden=64, head_dim=8, layers=5, kv_groups=4, heads_per_group=2, ff=172)
    assert Sizes(64, 8, 5, 4, 1, 134) in shapes(odd, weights_budget(odd, 0.25), heads_divide_hidden=True)


def test_a_speed_that_only_a_faster_plan_reaches_is_met_by_the_slowest_of_those():
    coarse = Sizes(hidden=64, head_dim=32, layers=3, kv_groups=1, heads_per_group=1, ff=1)
    budget = cost_budget(lambda sizes: sizes.layers, coarse, 2.5, tolerance=0.05)
    with pytest.raises(UnsupportedError):
        legal_shapes(coarse, budget, Goal(parameters=100), heads_divide_hidden=True)
    assert legal_shapes(coarse, budget, Goal(speed=1.2), heads_divide_hidden=True) == [replace(coarse, layers=2)]


def test_narrower_plans_meet_the_budget_and_fit_their_own_heads():
    assert narrower(TINY) == [224, 192]
    assert narrower(replace(TINY, hidden=4096)) == [3584, 3072]
    budget = weights_budget(TINY, 0.3)
    plain = legal_shapes(TINY, budget, Goal(ratio=0.3), heads_divide_hidden=True)
    found = legal_shapes(TINY, budget, Goal(ratio=0.3), heads_divide_hidden=True, narrower=[224, 192])
    assert found[: len(plain)] == plain
    assert {s.hidden for s in found[len(plain) :]} == {224, 192}
    assert all(s.hidden % s.heads == 0 and budget.floor <= budget.cost(s) <= budget.limit for s in found)


def test_where_heads_fill_the_hidden_size_both_shrink_together():
    gpt2 = Sizes(768, 64, 12, 12, 1, 3072, mlp_matrices=2, heads_fill_hidden=True)
    assert narrower(gpt2) == [704, 576]
    found = shapes(gpt2, weights_budget(gpt2, 0.3), heads_divide_hidden=False, narrower=narrower(gpt2))
    assert {(s.hidden, s.heads) for s in found} == {(768, 12), (704, 11), (576, 9)}
