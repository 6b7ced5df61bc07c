"""Which weights stay, given a score for each: a share of a matrix, the same share of every row, or N:M groups.

Scores and masks are [outputs, inputs]; the lowest scores go, of equals the first. A mask is true where a weight stays.
"""

import math

import torch
from torch import Tensor

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.goals import Pattern

#: What is asked of one matrix: a share of its weights that goes, or an N:M pattern along the inputs.
Wanted = float | Pattern


def removals(wanted: Wanted, shape: tuple[int, ...]) -> int:
    """Return how many weights of a matrix go.

    :raises UnsupportedError: when an N:M group does not divide the inputs.
    """
    if isinstance(wanted, Pattern):
        check_groups(wanted, shape[1])
        return math.prod(shape) // wanted.group * (wanted.group - wanted.kept)
    return round(wanted * math.prod(shape))


def check_groups(pattern: Pattern, inputs: int) -> None:
    """Refuse a pattern whose groups do not tile the inputs.

    :raises UnsupportedError: naming both sizes.
    """
    if inputs % pattern.group:
        raise UnsupportedError(
            f"{pattern} does not fit a matrix of {inputs} inputs", hint=f"{inputs} is no multiple of {pattern.group}"
        )


def keep_of_matrix(scores: Tensor, wanted: Wanted) -> Tensor:
    """Keep the highest scores of the whole matrix, or of every group."""
    if isinstance(wanted, Pattern):
        return keep_of_groups(scores, wanted)
    keep = torch.ones(scores.numel(), dtype=torch.bool)
    keep[scores.flatten().argsort(stable=True)[: removals(wanted, tuple(scores.shape))]] = False
    return keep.view(scores.shape)


def keep_of_rows(scores: Tensor, wanted: Wanted) -> Tensor:
    """Keep the highest scores of every row, or of every group.

    Rows differ by one weight at most, so that the matrix loses exactly its share.
    """
    if isinstance(wanted, Pattern):
        return keep_of_groups(scores, wanted)
    rows = len(scores)
    counts = row_counts(removals(wanted, tuple(scores.shape)), rows)
    return keep_counts(scores, counts)


def row_counts(total: int, rows: int) -> Tensor:
    """Spread ``total`` removals over rows as evenly as whole numbers allow; the first rows lose the odd ones."""
    counts = torch.full((rows,), total // rows)
    counts[: total % rows] += 1
    return counts


def keep_counts(scores: Tensor, counts: Tensor) -> Tensor:
    """Drop the ``counts[i]`` lowest scores of row ``i``."""
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return ranks >= counts[:, None]


def keep_of_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Keep the ``kept`` highest scores of every ``group`` neighbouring inputs.

    :raises UnsupportedError: when the groups do not divide the inputs.
    """
    check_groups(pattern, scores.shape[1])
    groups = scores.reshape(-1, pattern.group)
    counts = torch.full((len(groups),), pattern.group - pattern.kept)
    return keep_counts(groups, counts).view(scores.shape)


def fits(keep: Tensor, pattern: Pattern) -> bool:
    """Whether no group keeps more weights than the pattern allows."""
    return bool((keep.reshape(-1, pattern.group).sum(1) <= pattern.kept).all())
