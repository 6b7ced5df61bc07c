"""One block in work: in one pass over its inputs, or matrix after matrix with sequential least squares.

Sequential: each matrix sees the inputs that the block gives it once the matrices before it are pruned, and is fitted to
what the dense model's matrix puts out. The last matrices of attention and MLP are fitted to the dense residual stream
*minus* the pruned one, so that a block also repairs what the ones before it broke. Where a norm stands between such a
matrix and the stream (Gemma 2 and 3), it is fitted to the dense matrix's output like the others.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from apt.plugins.optional.pruning.decoder.block_work import BlockWork
from apt.plugins.optional.pruning.decoder.blocks import only_input
from apt.plugins.optional.pruning.decoder.leastsquares import RIDGE, Gram, Problem, problem
from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.linear import bias_of, output_of, passing, set_weight, weight_of
from apt.plugins.optional.pruning.masks.obs import (
    TRACE_INPUTS,
    descend_support,
    removal_trace,
    solve_support,
)
from apt.plugins.optional.pruning.masks.pattern import Wanted, removals, row_counts
from apt.plugins.optional.pruning.masks.sparsegpt import sparsegpt

#: Matrices that share their inputs, in the order of the forward pass.
_STAGES: Final = (("q", "k", "v", "qkv"), ("o",), ("gate", "up", "gate_up"), ("down",))

#: A stream counts as the sum of its parts up to this relative squared error.
_SUM_ERROR: Final = 1e-8

#: Steps of conjugate gradients on a support that is too wide for an exact solution: the error is then within a
#: hundredth of it on a trained model.
_DESCENT_STEPS: Final = 20

#: In matrices of up to so many inputs several ridges are tried; in wider ones that would take too long.
_WEIGHED_INPUTS: Final = 1024

#: Ridges that are weighed on batches held back; the first is that of the mask, and of all where none are.
RIDGES: Final = (10.0 * RIDGE, RIDGE, 100.0 * RIDGE)

#: role, optimum without zeros [outputs, inputs], regularised Gram matrix [inputs, inputs] → mask [outputs, inputs].
Chooser = Callable[[str, Tensor, Tensor], Tensor]


@torch.no_grad()
def prune_in_one_pass(work: BlockWork, method: Callable[[str, Tensor, Tensor], Tensor]) -> None:
    """Prune every matrix on the inputs that it has in the block before anything in the block is pruned.

    :param method: role, weight [outputs, inputs], ``X'X`` [inputs, inputs] float64 → the pruned weight.
    """
    sums: dict[str, Tensor] = {}
    with passing(work.matrices) as (inputs, _):
        for index in range(work.fitted):  # there is nothing to choose: all of them
            output_of(work.block, work.streams[index], work.calls[index])
            for role, x in inputs.items():
                tokens = x[work.valid[index]]
                product = (tokens.T @ tokens).to(torch.float64)
                sums[role] = sums[role] + product if role in sums else product
    for role, module in work.matrices.items():
        weight = weight_of(module, work.transposed)
        set_weight(module, work.transposed, method(role, weight, sums[role]))


@torch.no_grad()
def prune_sequentially(work: BlockWork, choose: Chooser) -> None:
    """Choose a mask for matrix after matrix and solve least squares on it.

    The ridge pulls towards the dense weights, relative to the mean square of the inputs. Where batches are held back
    and the matrix is narrow, it is one of :data:`RIDGES`, by the error on them; that takes no pass of its own.
    """
    state = _State(work, copy.deepcopy(work.block), _is_sum_of_parts(work))
    for roles in stages(work.matrices):
        weights = [weight_of(work.matrices[role], work.transposed) for role in roles]
        gram = state.gram(roles, weights, work.fitting)
        held_back = state.gram(roles, weights, work.choosing)
        dense = torch.cat(weights)
        system = problem(gram, dense, RIDGES[0])
        optimum = torch.cholesky_solve(system.b, torch.linalg.cholesky(system.a)).T
        edges = [len(weight) for weight in weights]
        parts = zip(roles, torch.split(optimum, edges), strict=True)
        keep = torch.cat([choose(role, best, system.a) for role, best in parts])
        fitted = fit_on_support(system, keep, optimum)
        if held_back.tokens and len(system.a) <= _WEIGHED_INPUTS:
            others = [fit_on_support(problem(gram, dense, ridge), keep, optimum) for ridge in RIDGES[1:]]
            fitted = min([fitted, *others], key=lambda weight: _error_on(held_back, weight))
        for role, weight in zip(roles, torch.split(fitted, edges), strict=True):
            set_weight(work.matrices[role], work.transposed, weight.to(dense.dtype))
        state.pass_by(roles)


def _error_on(gram: Gram, weight: Tensor) -> float:
    """Squared error of a stage's outputs on the tokens of ``gram``, less a constant."""
    weight = weight.to(gram.xx)
    return float((weight @ gram.xx * weight).sum() - 2.0 * (weight * gram.xy.T).sum())


def obs_mask(optimum: Tensor, matrix: Tensor, wanted: Wanted) -> Tensor:
    """Choose what stays of one matrix by the error after compensation; every row loses its share.

    Up to 192 inputs by exact greedy OBS; in wider matrices by SparseGPT's single visit to each column, whose cost is
    that of one factorisation. Rows that compete for the matrix's share were tried and are worse: the error that counts
    is not the matrix's own.
    """
    rows, inputs = optimum.shape
    if inputs > TRACE_INPUTS:
        return sparsegpt(optimum, matrix, wanted, damp=0.0) != 0.0
    pattern = wanted if isinstance(wanted, Pattern) else None
    counts = row_counts(removals(wanted, (rows, inputs)), rows)
    return removal_trace(optimum, matrix, pattern=pattern, steps=int(counts.max())).keep(counts, inputs)


def fit_on_support(system: Problem, keep: Tensor, start: Tensor) -> Tensor:
    """Solve every row on its support: exactly up to 192 inputs, else by some steps of conjugate gradients.

    :param start: where the descent begins, [rows, inputs]; it is masked first.
    """
    right = system.b.T
    if len(system.a) <= TRACE_INPUTS:
        return solve_support(system.a, right, keep)
    begun = (start * keep).float()
    return descend_support(system.a.float(), right.float(), keep, begun, _DESCENT_STEPS)


def stages(matrices: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return the roles that are there, those with common inputs together, in the order of the forward pass."""
    found = [[role for role in roles if role in matrices] for roles in _STAGES]
    return [roles for roles in found if roles]


def _is_sum_of_parts(work: BlockWork) -> bool:
    """Whether the dense block's output is its stream plus the outputs of ``o`` and ``down``."""
    if not {"o", "down"} <= work.matrices.keys():
        return False
    stream, call = work.dense_streams[0], work.calls[0]
    with passing(work.matrices) as (_, outputs):
        whole = output_of(work.block, stream, call)
    rest = whole - stream - outputs["o"] - outputs["down"]
    return float(rest.square().sum()) <= _SUM_ERROR * float(whole.square().sum())


@dataclass
class _State:
    """Where the work on a block stands.

    :param dense: a copy of the block before anything was changed.
    :param repairs: whether ``o`` and ``down`` are fitted to the stream.
    :param middles: the pruned stream between attention and MLP, once that is known.
    """

    work: BlockWork
    dense: nn.Module
    repairs: bool
    middles: Sequence[Tensor] = field(default_factory=list)

    def gram(self, roles: Sequence[str], weights: Sequence[Tensor], batches: Sequence[int]) -> Gram:
        """Sum up inputs and targets of a stage over some batches, the targets of its matrices side by side."""
        work = self.work
        gram = Gram(weights[0].shape[1], sum(len(weight) for weight in weights))
        names = {id(module): name for name, module in work.block.named_modules()}
        twins = {role: self.dense.get_submodule(names[id(work.matrices[role])]) for role in roles}
        for index in batches:
            x = only_input(work.matrices[roles[0]], work.block, work.streams[index], **work.calls[index])
            with passing(twins) as (_, outputs):
                output_of(self.dense, work.dense_streams[index], work.calls[index])
            targets = [self._target(role, outputs[role], index) for role in roles]
            valid = work.valid[index]
            gram.add(x[valid], torch.cat(targets, dim=-1)[valid])
        return gram

    def _target(self, role: str, dense_output: Tensor, index: int) -> Tensor:
        """Return what a matrix is fitted to, without its bias."""
        work = self.work
        target = dense_output
        if self.repairs and role == "o":
            target = work.dense_streams[index] + dense_output - work.streams[index]
        elif self.repairs and role == "down":
            target = work.dense_outputs[index] - self.middles[index]
        bias = bias_of(work.matrices[role])
        return target if bias is None else target - bias

    def pass_by(self, roles: Sequence[str]) -> None:
        """Note the stream after the attention, once it is pruned."""
        if not self.repairs or list(roles) != ["o"]:
            return
        work = self.work
        module = work.matrices["o"]
        self.middles = [
            work.streams[i] + module(only_input(module, work.block, work.streams[i], **work.calls[i]))
            for i in range(work.fitted)
        ]
