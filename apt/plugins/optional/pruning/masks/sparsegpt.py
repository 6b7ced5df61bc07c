"""SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023).

Columns are visited once, left to right. A column that loses a weight hands the error on to the columns to its right, by
the Cholesky factor of the inverse Hessian, so that one factorisation serves all rows. Updates within a block of columns
are immediate, those of the columns beyond it are made once a block.
"""

import itertools
from typing import Final

import torch
from torch import Tensor

from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.pattern import Wanted, check_groups, keep_of_matrix

#: Columns of one block (the paper's Bs and B).
BLOCK: Final = 128

#: Damping relative to the mean diagonal of the Hessian (the paper's 1 %).
DAMP: Final = 0.01


@torch.no_grad()
def sparsegpt(weight: Tensor, gram: Tensor, wanted: Wanted, *, block: int = BLOCK, damp: float = DAMP) -> Tensor:
    """Return the pruned and updated matrix in the dtype of ``weight``; zeros are exact.

    :param weight: [outputs, inputs].
    :param gram: ``X'X`` [inputs, inputs].
    :param wanted: the share of each block of columns that goes, or an N:M pattern.
    :raises UnsupportedError: when an N:M group does not divide the inputs.
    """
    if isinstance(wanted, Pattern):
        check_groups(wanted, weight.shape[1])
        block = max(1, block // wanted.group) * wanted.group
    work = weight.float().clone()
    dead = gram.diagonal() <= 0
    work[:, dead] = 0.0
    factor = inverse_factor(gram, dead, damp).float()
    inputs = weight.shape[1]
    starts = range(0, inputs, block)
    total = 0 if isinstance(wanted, Pattern) else round(wanted * weight.numel())
    counts = _block_counts(total, weight.shape, block)
    for start, count in zip(starts, counts, strict=True):
        end = min(start + block, inputs)
        part, corner = work[:, start:end].clone(), factor[start:end, start:end]
        errors = _prune_columns(part, corner, wanted, count)
        work[:, start:end] = part
        if end < inputs:
            work[:, end:] -= errors @ factor[start:end, end:]
    return work.to(weight.dtype)


def _block_counts(total: int, shape: torch.Size, block: int) -> list[int]:
    """Return the removals of each block of columns, in proportion to its width; they add up to ``total``."""
    edges = [*range(0, shape[1], block), shape[1]]
    marks = [total * edge // shape[1] for edge in edges]
    return [b - a for a, b in itertools.pairwise(marks)]


def inverse_factor(gram: Tensor, dead: Tensor, damp: float) -> Tensor:
    """Return the upper Cholesky factor ``U`` of the inverse of the damped Hessian: ``H^-1 = U'U``, float64."""
    hessian = gram.to(torch.float64).clone()
    diagonal = hessian.diagonal()
    diagonal[dead] = 1.0
    diagonal += damp * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def _prune_columns(part: Tensor, corner: Tensor, wanted: Wanted, count: int) -> Tensor:
    """Prune one block in place; return the scaled errors [outputs, columns] that the columns beyond it take over."""
    errors = torch.zeros_like(part)
    diagonal = corner.diagonal()
    flat = torch.ones(part.numel(), dtype=torch.bool)
    if not isinstance(wanted, Pattern):
        flat[(part / diagonal).square().flatten().argsort(stable=True)[:count]] = False
    keep = flat.view(part.shape)
    for column in range(part.shape[1]):
        if isinstance(wanted, Pattern) and column % wanted.group == 0:
            group = slice(column, column + wanted.group)
            keep[:, group] = keep_of_matrix((part[:, group] / diagonal[group]).square(), wanted)
        current = part[:, column]
        error = torch.where(keep[:, column], torch.zeros(()), current) / diagonal[column]
        part[:, column:] -= error[:, None] * corner[column, column:]
        part[:, column] = torch.where(keep[:, column], current, torch.zeros(()))
        errors[:, column] = error
    return errors
