"""Wanda (Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023)."""

from torch import Tensor


def wanda_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """Score weights by ``|w_ij| * ||x_j||``; they are compared within an output row, and nothing is updated.

    :param weight: [outputs, inputs].
    :param squares: sum of squares of each input over the tokens, [inputs].
    """
    return weight.abs() * squares.to(weight.dtype).sqrt()
