"""Optimal Brain Surgeon, row by row (Hassibi and Stork, 1993; Frantar and Alistarh, "Optimal Brain Compression", 2022).

Each output row is a least-squares problem of its own, ``minimise w'Aw - 2b'w``. Removing input ``p`` raises the optimum
by ``w_p^2 / (A^-1)_pp`` exactly, once the others are solved again. The greedy trace removes the cheapest input, updates
weights and inverse for its absence, and goes on; rows are worked on side by side. It costs ``inputs^3`` a row, so it is
for matrices up to :data:`TRACE_INPUTS` wide; wider ones are chosen by :mod:`.sparsegpt`.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.pattern import check_groups

#: Up to so many inputs greedy traces and exact solutions on a support are affordable: beyond, they take more than 5
#: times as long as SparseGPT.
TRACE_INPUTS: Final = 192

#: Floats of all rows' matrices that are worked on at a time.
_CHUNK_VALUES: Final = 1 << 24


@dataclass(frozen=True)
class Trace:
    """The order in which each row gives up its inputs.

    :param order: int64 [rows, steps], inputs in the order of their removal; -1 where a row has no more to give.
    :param rises: float64 [rows, steps], rise of the objective at each removal; infinite where there is none.
    """

    order: Tensor
    rises: Tensor

    def keep(self, counts: Tensor, inputs: int, alive: Tensor | None = None) -> Tensor:
        """Return the mask after the first ``counts[i]`` removals of row ``i``, [rows, inputs]."""
        rows = len(self.order)
        keep = torch.ones(rows, inputs, dtype=torch.bool) if alive is None else alive.clone()
        taken = torch.arange(self.order.shape[1])[None] < counts[:, None]
        row = torch.arange(rows)[:, None].expand_as(self.order)
        keep[row[taken], self.order[taken]] = False
        return keep


@torch.no_grad()
def removal_trace(
    weight: Tensor,
    matrix: Tensor,
    *,
    alive: Tensor | None = None,
    pattern: Pattern | None = None,
    steps: int | None = None,
) -> Trace:
    """Remove inputs greedily.

    :param weight: the optimum on ``alive``, [rows, inputs].
    :param matrix: ``A``, positive definite, [inputs, inputs] for all rows or [rows, inputs, inputs].
    :param alive: inputs that are not gone yet, [rows, inputs].
    :param pattern: no group loses more than it may; a row ends when all groups are full.
    :param steps: removals in each row; as many as there are when absent.
    """
    rows, inputs = weight.shape
    if pattern is not None:
        check_groups(pattern, inputs)
    steps = inputs if steps is None else steps
    size = max(1, _CHUNK_VALUES // (inputs * inputs))
    parts = []
    for start in range(0, rows, size):
        some = slice(start, min(start + size, rows))
        mask = torch.ones_like(weight[some], dtype=torch.bool) if alive is None else alive[some]
        shared = matrix if matrix.ndim == 2 else matrix[some]
        inverse = _inverse_on(shared, mask)
        parts.append(_greedy(weight[some].to(torch.float64).clone(), inverse, mask.clone(), pattern, steps))
    return Trace(torch.cat([order for order, _ in parts]), torch.cat([rises for _, rises in parts]))


def embedded(matrix: Tensor, keep: Tensor) -> Tensor:
    """Return ``A`` on each row's support and the identity elsewhere, [rows, inputs, inputs] float64."""
    both = keep[:, :, None] & keep[:, None, :]
    result = torch.where(both, matrix.to(torch.float64), torch.zeros((), dtype=torch.float64))
    result.diagonal(dim1=1, dim2=2)[~keep] = 1.0
    return result


def _inverse_on(matrix: Tensor, keep: Tensor) -> Tensor:
    """Return the inverse of ``A`` on each row's support, zero elsewhere."""
    if bool(keep.all()) and matrix.ndim == 2:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix.to(torch.float64)))
        return inverse.expand(len(keep), -1, -1).clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(embedded(matrix, keep)))
    inverse.diagonal(dim1=1, dim2=2)[~keep] = 0.0
    return inverse


def _greedy(
    weight: Tensor, inverse: Tensor, alive: Tensor, pattern: Pattern | None, steps: int
) -> tuple[Tensor, Tensor]:
    """Run the trace of some rows; ``weight``, ``inverse`` and ``alive`` are worked on in place."""
    rows = len(weight)
    row = torch.arange(rows)
    order = torch.full((rows, steps), -1)
    rises = torch.full((rows, steps), torch.inf, dtype=torch.float64)
    room = None
    if pattern is not None:
        groups = alive.view(rows, -1, pattern.group)
        room = groups.sum(2) - pattern.kept
    diagonal = inverse.diagonal(dim1=1, dim2=2)
    for step in range(steps):
        allowed = alive if pattern is None or room is None else _with_room(alive, room, pattern)
        costs = torch.where(allowed, weight.square() / diagonal.clamp(min=1e-300), torch.inf)
        rise, place = costs.min(dim=1)
        going = rise.isfinite()
        if not bool(going.any()):
            break
        order[going, step] = place[going]
        rises[going, step] = rise[going]
        column = inverse[row, :, place]
        pivot = torch.where(going, column[row, place], torch.inf)  # a row that stands still is divided to nothing
        weight -= column * (weight[row, place] / pivot)[:, None]
        scaled = column / pivot.sqrt()[:, None]
        torch.baddbmm(inverse, scaled[:, :, None], scaled[:, None, :], alpha=-1.0, out=inverse)
        alive[row[going], place[going]] = False
        weight *= alive
        if room is not None and pattern is not None:
            room[row[going], place[going] // pattern.group] -= 1
    return order, rises


def _with_room(alive: Tensor, room: Tensor, pattern: Pattern) -> Tensor:
    return alive & (room > 0).repeat_interleave(pattern.group, dim=1)


@torch.no_grad()
def solve_support(matrix: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    """Return each row's optimum on its support: ``A_SS w_S = b_S``, float64 [rows, inputs], exact zeros elsewhere.

    :param matrix: ``A``, [inputs, inputs] or [rows, inputs, inputs].
    :param right: ``b`` [rows, inputs].
    """
    rows, inputs = keep.shape
    size = max(1, _CHUNK_VALUES // (inputs * inputs))
    parts = []
    for start in range(0, rows, size):
        some = slice(start, min(start + size, rows))
        system = embedded(matrix if matrix.ndim == 2 else matrix[some], keep[some])
        wanted = (right[some].to(torch.float64) * keep[some])[:, :, None]
        solved = torch.cholesky_solve(wanted, torch.linalg.cholesky(system))[:, :, 0]
        parts.append(solved * keep[some])
    return torch.cat(parts)


@torch.no_grad()
def descend_support(matrix: Tensor, right: Tensor, keep: Tensor, start: Tensor, steps: int) -> Tensor:
    """Come near to the optimum on the support by conjugate gradients, all rows at once; for wide matrices.

    Each step is one product with ``A``; Jacobi preconditioning. The objective of no row rises.

    :param start: where to begin, [rows, inputs]; zero outside ``keep``.
    :returns: in the dtype of ``start``, exact zeros outside ``keep``.
    """
    scale = 1.0 / matrix.diagonal()
    solution = start.clone()
    rest = (right - solution @ matrix) * keep
    z = rest * scale
    direction = z.clone()
    size = (rest * z).sum(1)
    for _ in range(steps):
        image = (direction @ matrix) * keep
        curve = (direction * image).sum(1)
        step = torch.where(curve > 0, size / curve.clamp(min=1e-30), torch.zeros(()))
        solution += step[:, None] * direction
        rest -= step[:, None] * image
        z = rest * scale
        after = (rest * z).sum(1)
        direction = z + torch.where(size > 0, after / size.clamp(min=1e-30), torch.zeros(()))[:, None] * direction
        size = after
    return solution * keep
