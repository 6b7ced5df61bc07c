"""Refit of a masked block: all that is left of it is fitted to the dense model's stream, on the support it has.

Full-batch L-BFGS (Liu and Nocedal, 1989) on the squared error of the block's output, with a ridge towards the start. It
works in coordinates in which a Gauss-Newton model of the error is round: for each output row a root of
``G_i = sum_t s_i(t)^2 x(t) x(t)'`` on the row's support, where ``s_i(t)`` is how strongly that output moves the
block's, measured by probes of signs (Hutchinson, 1989) with a fixed seed; for wide matrices only its diagonal. That
makes few steps go far. Nothing is drawn from the text, and the language model's loss is not looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.plugins.optional.pruning.decoder.block_work import BlockWork
from apt.plugins.optional.pruning.decoder.lbfgs import history_within, minimise
from apt.plugins.optional.pruning.masks.fisher import RowBlocks, backward
from apt.plugins.optional.pruning.masks.linear import output_of, weight_of
from apt.plugins.optional.pruning.masks.obs import embedded

#: Steps of L-BFGS for each block.
STEPS: Final = 20

#: Weight of the relative distance from the starting weights, beside the relative output error.
RIDGE: Final = 1e-2

#: Damping of the Gauss-Newton blocks, relative to their mean diagonal.
DAMP: Final = 1e-2

#: Steps that L-BFGS remembers, fewer in a wide block, where they may take so much memory.
_HISTORY: Final = 20
_LEAST_HISTORY: Final = 3
_HISTORY_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Refitted:
    """Relative squared error of the block's output, on the fitted batches and on those held back (NaN without any)."""

    fitted_before: float
    fitted_after: float
    held_back_before: float
    held_back_after: float
    kept: bool


def sensitivity(work: BlockWork) -> dict[str, RowBlocks]:
    """Measure the Gauss-Newton blocks of every matrix for the block's output error on the fitted batches.

    The error is relative to what the dense block adds to the stream.
    """
    generator = torch.Generator().manual_seed(0)
    scale = math.sqrt(1.0 / _square(work, work.fitting))
    found = {}
    for role, module in work.matrices.items():
        outputs, inputs = weight_of(module, work.transposed).shape
        found[role] = RowBlocks(outputs, inputs)
    for index in work.fitting:
        stream, valid = work.streams[index], work.valid[index]
        signs = torch.randint(0, 2, stream.shape, generator=generator).to(stream.dtype) * 2.0 - 1.0
        probe = signs * scale * valid[..., None]
        _, passed = backward(work.block, work.matrices, stream, work.calls[index], probe)
        for role, what in passed.items():
            found[role].add(what.inputs[valid], what.gradients[valid])
    return found


def refit_block(
    work: BlockWork, curvature: dict[str, RowBlocks] | None = None, *, steps: int = STEPS, ridge: float = RIDGE
) -> Refitted:
    """Refit in place: matrices on their supports (a weight that is zero stays so), biases and norms wholly.

    The refit is taken back when the objective did not fall, or the error of the batches held back rose.

    :param curvature: of :func:`sensitivity` at this very block; measured when absent.
    """
    held_before = _error(work, work.choosing)
    problem = _Objective(work, curvature or sensitivity(work), ridge)
    with torch.enable_grad():
        before = problem()
        fitted_before = problem.error
        problem.minimise(steps)
        after = problem()
        fitted_after = problem.error
    held_after = _error(work, work.choosing)
    kept = after <= before and not held_after > held_before
    if not kept:  # also when it is not a number
        problem.reset()
    problem.forget()
    return Refitted(fitted_before, fitted_after, held_before, held_after, kept)


@torch.no_grad()
def _square(work: BlockWork, batches: Sequence[int]) -> float:
    """Square of what the block is to add to the pruned stream."""
    added = (float((work.dense_outputs[i] - work.streams[i])[work.valid[i]].square().sum()) for i in batches)
    return max(sum(added), 1e-30)


@torch.no_grad()
def _error(work: BlockWork, batches: Sequence[int]) -> float:
    """Return the relative squared error of the block's output; NaN without batches."""
    if not batches:
        return math.nan
    parts = (output_of(work.block, work.streams[i], work.calls[i]) - work.dense_outputs[i] for i in batches)
    apart = sum(float(part[work.valid[i]].square().sum()) for i, part in zip(batches, parts, strict=True))
    return apart / _square(work, batches)


class _Objective:
    """The relative output error plus ridge, as a function of the coordinates of all parameters."""

    def __init__(self, work: BlockWork, curvature: dict[str, RowBlocks], ridge: float) -> None:
        self.work = work
        self.ridge = ridge
        self.error = math.nan
        self._square = _square(work, work.fitting)
        matrices = [_Matrix(m.weight, work.transposed, curvature[role]) for role, m in work.matrices.items()]
        taken = {id(part.parameter) for part in matrices}
        others = [_Vector(p) for p in work.block.parameters() if id(p) not in taken]
        self.parts: list[_Matrix | _Vector] = [*matrices, *others]
        # Layers that were read from files ask for no gradients.
        self._asked = [part.parameter.requires_grad for part in self.parts]
        for part in self.parts:
            part.parameter.requires_grad_()

    def __call__(self) -> float:
        """Place the weights, return the objective and leave the gradients in the coordinates."""
        work = self.work
        for part in self.parts:
            part.place()
            part.parameter.grad = None
        self.error = 0.0
        for index in work.fitting:
            output = output_of(work.block, work.streams[index], work.calls[index])
            error = (output - work.dense_outputs[index])[work.valid[index]].square().sum() / self._square
            error.backward()  # type: ignore[no-untyped-call]  # torch stubs
            self.error += float(error.detach())
        return self.error + sum(part.pull_back(self.ridge) for part in self.parts)

    def minimise(self, steps: int) -> None:
        """Run L-BFGS."""
        variables = [part.z for part in self.parts]
        history = history_within(_HISTORY_BYTES, variables, least=_LEAST_HISTORY, most=_HISTORY)
        minimise(self, variables, steps=steps, history=history)

    def reset(self) -> None:
        """Go back to the start."""
        for part in self.parts:
            part.z.data.zero_()
            part.place()

    def forget(self) -> None:
        """Leave no gradients behind."""
        for part, asked in zip(self.parts, self._asked, strict=True):
            part.parameter.grad = None
            part.parameter.requires_grad_(asked)


class _Vector:
    """A bias or a norm: coordinates are in units of its root mean square, so one that is all zero stays so."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.start = parameter.detach().clone()
        self.scale = float(self.start.square().mean().sqrt())
        self.z = torch.zeros_like(self.start)
        self.norm = max(float(self.start.square().sum()), 1e-30)

    @torch.no_grad()
    def place(self) -> None:
        """Write the parameter."""
        self.parameter.copy_(self.start + self.scale * self.z)

    @torch.no_grad()
    def pull_back(self, ridge: float) -> float:
        """Turn the parameter's gradient into that of the coordinates; return the ridge's part of the objective."""
        delta = self.scale * self.z
        gradient = torch.zeros_like(delta) if self.parameter.grad is None else self.parameter.grad
        self.z.grad = (gradient + 2.0 * ridge / self.norm * delta) * self.scale
        return ridge * float(delta.square().sum()) / self.norm


class _Matrix:
    """A matrix on its support: ``w_i = start_i + L_i^-T z_i`` with ``L_i L_i' = G_i``, or only scaled when wide."""

    def __init__(self, parameter: Any, transposed: bool, curvature: RowBlocks) -> None:
        self.parameter: nn.Parameter = parameter
        self._transposed = transposed
        weight = parameter.detach()
        self.start = (weight.T if transposed else weight).clone()
        self.keep = self.start != 0.0
        self.z = torch.zeros_like(self.start)
        self.delta = torch.zeros_like(self.start)
        self.norm = max(float(self.start.square().sum()), 1e-30)
        blocks = curvature.blocks(DAMP)
        self._factor: Tensor | None = None
        self._scale = torch.ones(())
        if curvature.own:
            self._factor = torch.linalg.cholesky(embedded(blocks, self.keep)).to(self.start.dtype)
        else:
            diagonal = curvature.row_factors()[:, None] * blocks.diagonal()
            self._scale = diagonal.clamp(min=float(diagonal.mean()) * 1e-6).rsqrt().to(self.start.dtype)

    @torch.no_grad()
    def place(self) -> None:
        """Write the parameter."""
        self.delta = self._solved(self.z, upper=True)
        weight = self.start + self.delta
        self.parameter.copy_(weight.T if self._transposed else weight)

    @torch.no_grad()
    def pull_back(self, ridge: float) -> float:
        """As in :class:`_Vector`."""
        gradient = torch.zeros_like(self.parameter) if self.parameter.grad is None else self.parameter.grad
        gradient = gradient.T if self._transposed else gradient
        self.z.grad = self._solved(gradient + 2.0 * ridge / self.norm * self.delta, upper=False)
        return ridge * float(self.delta.square().sum()) / self.norm

    def _solved(self, value: Tensor, *, upper: bool) -> Tensor:
        """Return ``L^-T value`` or ``L^-1 value`` row by row, on the support."""
        value = value * self.keep
        if self._factor is None:
            return value * self._scale
        factor = self._factor.mT if upper else self._factor
        solved = torch.linalg.solve_triangular(factor, value[:, :, None], upper=upper)[:, :, 0]
        return solved * self.keep
