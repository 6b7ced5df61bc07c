"""Least squares with a ridge towards the dense weights, and which inputs it can best do without.

A linear layer ``y = W x`` whose inputs are thinned out is fitted again in closed form: with the inputs ``X`` of the
pruned model, targets ``Y`` of the dense one and the dense weights ``W0``,

    minimise  ||X W' - Y||^2 + ridge * mean(diag(X'X)) * ||W - W0||^2.

Removing a block of inputs from that problem raises its optimum by ``tr(W_B (A^-1_BB)^-1 W_B')`` exactly, where
``A`` is the regularised Gram matrix (Optimal Brain Surgeon: Hassibi and Stork, 1993; for structures: Kurtic et al.,
"ZipLM", 2023). So a greedy choice by that amount is a choice on the error after compensation, not on a magnitude.
Sums and solutions are float64, since Gram matrices square the condition number; each batch's products are float32.
Memory: about four matrices inputs x inputs while blocks are chosen. Beyond :data:`WIDE` inputs they are float32, so
that the down_proj of a 7B model (11,008 inputs) takes 1.9 GB and not 3.9.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from apt.console.errors import BadInputError

#: Ridge relative to the mean diagonal of the Gram matrix.
RIDGE: Final = 1e-3

#: Up to so many combinations the choice of blocks is exhaustive.
MAX_COMBINATIONS: Final = 128

#: Beyond so many inputs sums and solutions are float32, to halve their memory.
WIDE: Final = 8192

#: A greedy choice takes at most so many steps; wider layers lose several inputs in a step.
MAX_STEPS: Final = 512


@contextmanager
def solvable() -> Iterator[None]:
    """Say in a line what is wrong when a factorisation fails.

    :raises BadInputError: for a matrix that is not positive definite.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, missing from the stubs
        raise BadInputError(f"the least-squares problem cannot be solved: {error}") from error


class Gram:
    """Sums over tokens that a least-squares problem needs: ``X'X`` [inputs, inputs] and ``X'Y`` [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        dtype = torch.float64 if inputs <= WIDE else torch.float32
        self.xx = torch.zeros(inputs, inputs, dtype=dtype)
        self.xy = torch.zeros(inputs, outputs, dtype=dtype)
        self.tokens = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count tokens: ``x`` [..., inputs] and ``y`` [..., outputs] with equal leading sizes."""
        x = x.reshape(-1, x.shape[-1])
        y = y.reshape(-1, y.shape[-1])
        self.xx += (x.T @ x).to(self.xx)
        self.xy += (x.T @ y).to(self.xy)
        self.tokens += len(x)


@dataclass(frozen=True)
class Problem:
    """The normal equations ``a @ weight.T = b`` of one layer.

    :param a: regularised Gram matrix [inputs, inputs], symmetric positive definite.
    :param b: right-hand side [inputs, outputs].
    """

    a: Tensor
    b: Tensor

    def solve(self, keep: Sequence[int]) -> Tensor:
        """Return the optimal weights [outputs, len(keep)] when only the inputs ``keep`` remain."""
        index = torch.tensor(keep)
        a = self.a[index][:, index]
        solution = torch.cholesky_solve(self.b[index], torch.linalg.cholesky(a))
        return solution.T.contiguous()

    def gain(self, keep: Sequence[int]) -> float:
        """How far the inputs ``keep`` lower the objective below that of no inputs at all (larger is better)."""
        return float((self.b[torch.tensor(keep)] * self.solve(keep).T).sum())


def problem(gram: Gram, dense: Tensor, ridge: float = RIDGE) -> Problem:
    """Build the normal equations.

    :param dense: the dense weights [outputs, inputs], towards which the ridge pulls.
    """
    strength = ridge * float(gram.xx.diagonal().mean())
    if strength <= 0.0 or not math.isfinite(strength):
        strength = ridge  # inputs that are always zero: keep the dense weights
    a = gram.xx.clone()
    a.diagonal().add_(strength)
    return Problem(a, gram.xy + strength * dense.T.to(gram.xy))


@dataclass(frozen=True)
class Choice:
    """Which blocks stay, and what each was worth.

    :param kept: indices of the blocks that stay, ascending.
    :param importance: for each block the rise of the objective when it alone is removed from the full layer.
    """

    kept: tuple[int, ...]
    importance: tuple[float, ...]

    def per_token(self, tokens: int) -> "Choice":
        """Return the same choice with importances divided by the number of tokens they were summed over."""
        return Choice(self.kept, tuple(value / max(tokens, 1) for value in self.importance))


def choose_blocks(system: Problem, block: int, keep: int) -> Choice:
    """Choose which ``keep`` of the blocks of ``block`` neighbouring inputs stay, by the error after compensation."""
    blocks = len(system.a) // block
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system.a))
    weight = inverse @ system.b
    importance = _costs(inverse, weight, block)
    if math.comb(blocks, keep) <= MAX_COMBINATIONS:
        kept = max(itertools.combinations(range(blocks), keep), key=lambda some: system.gain(members(some, block)))
    else:
        kept = _greedy(inverse, weight, block, keep)
    return Choice(tuple(kept), tuple(importance.tolist()))


def choose_heads(
    system: Problem, head_dim: int, groups: int, per_group: int, keep_groups: int, keep_per_group: int
) -> Choice:
    """Choose which KV groups stay, and in each which query heads; a group goes with all its heads.

    :param system: the problem of ``o_proj``; its inputs are the heads' outputs, ``groups * per_group * head_dim``.
    :returns: query heads, ``keep_per_group`` in each of ``keep_groups`` groups; the importance of every query head.
    """
    single = choose_blocks(system, head_dim, groups * per_group)
    kept_groups = choose_blocks(system, per_group * head_dim, keep_groups).kept
    heads = [members([group], per_group) for group in kept_groups]
    while any(len(group) > keep_per_group for group in heads):
        # One head at a time, wherever it is missed least once the rest is fitted again.
        options = [(g, h) for g, group in enumerate(heads) if len(group) > keep_per_group for h in group]
        gains = [system.gain(members(_without(heads, g, h), head_dim)) for g, h in options]
        place, head = options[max(range(len(options)), key=gains.__getitem__)]
        heads[place] = [h for h in heads[place] if h != head]
    return Choice(tuple(h for group in heads for h in group), single.importance)


def _without(heads: Sequence[Sequence[int]], place: int, head: int) -> list[int]:
    return [h for g, group in enumerate(heads) for h in group if (g, h) != (place, head)]


def members(blocks: Sequence[int], block: int) -> list[int]:
    """Return the inputs that belong to ``blocks``."""
    return [index * block + offset for index in blocks for offset in range(block)]


def _greedy(inverse: Tensor, weight: Tensor, block: int, keep: int) -> tuple[int, ...]:
    """Remove the cheapest block, update inverse and weights for its absence, and again, until ``keep`` are left.

    ``inverse`` and ``weight`` are overwritten: a removed input leaves zeros and a one on the diagonal.
    """
    alive = torch.ones(len(inverse) // block, dtype=torch.bool)
    per_step = math.ceil((len(alive) - keep) / MAX_STEPS)
    while (left := int(alive.sum())) > keep:
        costs = _costs(inverse, weight, block).masked_fill(~alive, math.inf)
        cheapest = torch.topk(costs, min(per_step, left - keep), largest=False, sorted=True).indices
        alive[cheapest] = False
        removed = torch.tensor(members(cheapest.tolist(), block))
        # Schur complement: the inverse of the reduced matrix, and the solution on the reduced support.
        rows = inverse[removed]
        factor = torch.linalg.solve(rows[:, removed], rows).T
        weight.addmm_(factor, weight[removed], alpha=-1.0)
        inverse.addmm_(factor, rows, alpha=-1.0)
        inverse[removed] = 0.0
        inverse[:, removed] = 0.0
        inverse[removed, removed] = 1.0
        weight[removed] = 0.0
    return tuple(alive.nonzero().flatten().tolist())


def _costs(inverse: Tensor, weight: Tensor, block: int) -> Tensor:
    """Rise of the objective for the removal of each block alone: ``tr(W_B (A^-1_BB)^-1 W_B')``, [blocks]."""
    if block == 1:
        return weight.square().sum(1) / inverse.diagonal()
    count = len(inverse) // block
    squares = inverse.view(count, block, count, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = weight.view(count, block, -1)
    return (parts * torch.linalg.solve(squares, parts)).sum((1, 2))
