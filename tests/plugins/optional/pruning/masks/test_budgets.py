"""One threshold over all rows."""

import pytest
import torch

from apt.plugins.optional.pruning.masks.budgets import removal_counts


def test_the_cheapest_go_wherever_they_are():
    rises = {"a": torch.tensor([[1.0, 4.0, 9.0], [2.0, 3.0, 8.0]]), "b": torch.tensor([[5.0, 6.0]])}
    counts = removal_counts(rises, 5)
    assert counts["a"].tolist() == [2, 2]
    assert counts["b"].tolist() == [1]


def test_a_row_gives_a_beginning_of_its_trace():
    """A cheap removal that comes after a dear one is not to be had without it."""
    counts = removal_counts({"a": torch.tensor([[10.0, 1.0, 1.0], [2.0, 3.0, 4.0]])}, 3)
    assert counts["a"].tolist() == [0, 3]
    assert removal_counts({"a": torch.tensor([[5.0, 1.0, 1.0], [5.0, 5.0, 5.0]])}, 4)["a"].tolist() == [3, 1]


def test_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="3 removals are asked for, 2 are possible"):
        removal_counts({"a": torch.tensor([[1.0, torch.inf], [1.0, torch.inf]])}, 3)
