"""Which weights go: exact counts, whole groups, ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.pattern import (
    fits,
    keep_of_groups,
    keep_of_matrix,
    keep_of_rows,
    removals,
    row_counts,
)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_groups_keep_the_highest_scores(data):
    group = data.draw(st.integers(2, 8))
    kept = data.draw(st.integers(1, group - 1))
    rows, groups = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    values = data.draw(st.lists(st.integers(0, 9), min_size=rows * groups * group, max_size=rows * groups * group))
    scores = torch.tensor(values, dtype=torch.float32).view(rows, groups * group)
    pattern = Pattern(kept, group)
    keep = keep_of_groups(scores, pattern)
    assert fits(keep, pattern)
    parts, masks = scores.view(-1, group), keep.view(-1, group)
    assert bool((masks.sum(1) == kept).all())
    for part, mask in zip(parts, masks, strict=True):
        assert part[mask].min() >= part[~mask].max()
    assert int((~keep).sum()) == removals(pattern, tuple(scores.shape))


@given(st.integers(1, 7), st.integers(1, 9), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_shares_are_exact(rows, inputs, ratio):
    scores = torch.rand(rows, inputs, generator=torch.Generator().manual_seed(0))
    asked = removals(ratio, (rows, inputs))
    by_row, by_matrix = keep_of_rows(scores, ratio), keep_of_matrix(scores, ratio)
    assert int((~by_row).sum()) == int((~by_matrix).sum()) == asked
    gone = (~by_row).sum(1)
    assert int(gone.max() - gone.min()) <= 1
    if 0 < asked < scores.numel():
        assert scores[by_matrix].min() >= scores[~by_matrix].max()


def test_of_equals_the_first_go():
    assert keep_of_matrix(torch.ones(2, 2), 0.5).tolist() == [[False, False], [True, True]]
    assert keep_of_rows(torch.ones(2, 2), 0.5).tolist() == [[False, True], [False, True]]
    assert row_counts(5, 3).tolist() == [2, 2, 1]


def test_groups_that_do_not_tile_the_inputs_are_refused():
    with pytest.raises(UnsupportedError, match="2:4 does not fit a matrix of 6 inputs"):
        keep_of_groups(torch.ones(1, 6), Pattern(2, 4))
