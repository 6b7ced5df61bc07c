"""The empirical Fisher information of a block's weights, from gradients of single rows' losses.

A weight matrix sees a token's input ``x`` and, from the loss of the row it stands in, the gradient ``d`` of its output.
The gradient of output row ``i`` is ``d_i x`` for that token. Squares are summed token by token, never the square of a
sum: the gradient of the mean loss vanishes at a trained model and says nothing (Hassibi and Stork, 1993; Singh and
Alistarh, "WoodFisher", 2020; Kurtic et al., "The Optimal BERT Surgeon", 2022).

The sweep runs forward once and then backward block by block, so that one block's graph is in memory at a time. Beside
it stand the streams before all blocks, rows * window * hidden * layers floats, and what passed one block's matrices.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.layers import linear_modules
from apt.plugins.optional.pruning.decoder.trace import finite
from apt.plugins.optional.pruning.masks.driver import Feed, layers_of
from apt.plugins.optional.pruning.masks.linear import output_of, passing
from apt.plugins.optional.pruning.masks.obs import TRACE_INPUTS

#: Up to so many floats the rows of a matrix have blocks of their own.
ROW_VALUES: Final = 1 << 25

#: Floats of products of inputs that are worked on at a time.
_CHUNK_VALUES: Final = 1 << 23


def rows_have_blocks(outputs: int, inputs: int) -> bool:
    """Whether a matrix is narrow enough for a block of each output row: to sum up, to hold, and to trace."""
    return inputs <= TRACE_INPUTS and outputs * inputs**2 <= ROW_VALUES


class RowBlocks:
    """Sums of one matrix: a block [inputs, inputs] for each output row, or one for all and a factor for each row.

    :param own: whether rows have blocks of their own; by :func:`rows_have_blocks` when absent.
    """

    def __init__(self, outputs: int, inputs: int, *, own: bool | None = None) -> None:
        self.own = rows_have_blocks(outputs, inputs) if own is None else own
        self.inputs = inputs
        upper = torch.triu_indices(inputs, inputs)
        self._upper = (upper[0], upper[1])
        #: Upper triangles, [outputs or 1, inputs * (inputs + 1) / 2].
        self._sums = torch.zeros(outputs if self.own else 1, upper.shape[1])
        #: Sum of squared gradients of each output, [outputs].
        self.squares = torch.zeros(outputs, dtype=torch.float64)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Count tokens: inputs ``x`` [tokens, inputs], gradients of the outputs ``d`` [tokens, outputs]."""
        square = d.square()
        self.squares += square.sum(0, dtype=torch.float64)
        if not self.own:
            self._sums += (x.T @ (x * square.mean(1, keepdim=True)))[self._upper]
            return
        step = max(1, _CHUNK_VALUES // self._sums.shape[1])
        for some, weight in zip(torch.split(x, step), torch.split(square, step), strict=True):
            self._sums.addmm_(weight.T, some[:, self._upper[0]] * some[:, self._upper[1]])

    def blocks(self, damp: float) -> Tensor:
        """Return the damped blocks, float64 [outputs, inputs, inputs], or [inputs, inputs] for shared ones.

        :param damp: relative to each block's mean diagonal; rows without any gradient get the smallest that is not
            zero, so that their weights come first.
        """
        count = len(self._sums)
        full = torch.zeros(count, self.inputs, self.inputs, dtype=torch.float64)
        full[:, self._upper[0], self._upper[1]] = self._sums.to(torch.float64)
        full = full + full.triu(1).mT
        means = full.diagonal(dim1=1, dim2=2).mean(1)
        floor = means[means > 0].min() * 1e-3 if bool((means > 0).any()) else torch.ones((), dtype=torch.float64)
        full.diagonal(dim1=1, dim2=2).add_((damp * means.clamp(min=float(floor)))[:, None])
        return full if self.own else full[0]

    def row_factors(self) -> Tensor:
        """Return what a shared block is multiplied with for each row, [outputs]; ones where rows have their own."""
        if self.own:
            return torch.ones_like(self.squares)
        return self.squares / self.squares.mean().clamp(min=1e-300)


class DiagonalFisher:
    """Only the diagonal, [outputs, inputs], of gradients summed over each row of text first."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.sums = torch.zeros(outputs, inputs, dtype=torch.float64)

    def add_rows(self, x: Tensor, d: Tensor) -> None:
        """Count rows of text: ``x`` [rows, window, inputs] and ``d`` [rows, window, outputs], zero on padding."""
        self.sums += (d.mT @ x).square().sum(0, dtype=torch.float64)


@dataclass(frozen=True)
class Passed:
    """What went through one matrix on one feed: inputs and gradients of the outputs, [rows, window, ...]."""

    inputs: Tensor
    gradients: Tensor


def sweep(
    model: Any,
    architecture: Architecture,
    feeds: Sequence[Feed],
    visit: Callable[[int, Sequence[Mapping[str, Passed]]], None],
) -> None:
    """Go forward through the model and backward block by block.

    :param visit: is called for each block, the last one first, with what passed its matrices, feed by feed. The loss is
        the sum over counted tokens, in nats.
    :raises BadInputError: when the activations are not finite.
    """
    layers = layers_of(model, architecture)
    starts = [_start(model, layers, f) for f in feeds]
    gradients = [gradient for _, gradient in starts]
    with progress("measuring gradients", len(layers), "blocks") as bar:
        for index in reversed(range(len(layers))):
            matrices = linear_modules(layers[index], architecture)
            passed = []
            for place, f in enumerate(feeds):
                stream = starts[place][0][index]
                gradients[place], found = backward(layers[index], matrices, stream, f.calls[index], gradients[place])
                passed.append(found)
            visit(index, passed)
            bar.advance()


def backward(
    block: nn.Module, matrices: Mapping[str, nn.Module], stream: Tensor, call: Mapping[str, Any], gradient: Tensor
) -> tuple[Tensor, dict[str, Passed]]:
    """Take the gradient of a block's output back to its input.

    :returns: the gradient of the stream before the block, and what passed each matrix.
    """
    with torch.enable_grad(), passing(matrices) as (inputs, outputs):
        leaf = stream.detach().requires_grad_()
        result = output_of(block, leaf, call)
        found = torch.autograd.grad(result, [leaf, *outputs.values()], gradient)
    passed = {role: Passed(inputs[role].detach(), d.detach()) for role, d in zip(outputs, found[1:], strict=True)}
    return found[0], passed


def _start(model: Any, layers: Sequence[nn.Module], f: Feed) -> tuple[list[Tensor], Tensor]:
    """Return the stream before each block, and the gradient of the rows' losses at the stream after the last one."""
    streams: list[Tensor] = []
    last: list[Tensor] = []

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append((args[0] if args else kwargs["hidden_states"]).detach())

    def begin(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        torch.set_grad_enabled(True)  # from here on a graph is wanted; what came before needs none
        leaf = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
        last.append(leaf)
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(remember, with_kwargs=True).remove)
        stack.callback(layers[-1].register_forward_hook(begin).remove)
        logits = finite(model(input_ids=f.ids, use_cache=False).logits[:, :-1][f.counted])
        loss = torch.nn.functional.cross_entropy(logits.float(), f.ids[:, 1:][f.counted], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, last)
    return streams, gradient
