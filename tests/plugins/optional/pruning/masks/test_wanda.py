"""Wanda by hand."""

import torch

from apt.plugins.optional.pruning.masks.pattern import keep_of_rows
from apt.plugins.optional.pruning.masks.wanda import wanda_scores


def test_a_small_weight_on_a_loud_input_stays():
    weight = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, 0.1]])
    x = torch.tensor([[3.0, 0.1, 4.0], [4.0, 0.1, 3.0]])  # norms 5, 0.1414, 5
    scores = wanda_scores(weight, x.square().sum(0))
    assert torch.allclose(scores, torch.tensor([[5.0, 0.2828, 2.5], [15.0, 0.01414, 0.5]]), atol=1e-4)
    # The second row loses its own least, although all of them but one are below the first row's.
    assert keep_of_rows(scores, 1 / 3).tolist() == [[True, False, True], [True, False, True]]
