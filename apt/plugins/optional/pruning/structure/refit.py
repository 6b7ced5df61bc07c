"""Refit of whole blocks: all matrices of a cut block, so that its output is the dense model's again.

Least squares mends only the last matrix of attention and MLP. Here every parameter of a block and of the one after it
is fitted to the dense residual stream that follows, full-batch, by L-BFGS (Liu and Nocedal, 1989) in variables that
make it converge fast (:mod:`.preconditioner`), with a ridge towards the mended weights; then the first of the two stays
and the next block joins. The objective is the blocks' output error, never the language model's loss, and there is
nothing random in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.blocks import Decoder
from apt.plugins.optional.pruning.decoder.lbfgs import history_within, minimise
from apt.plugins.optional.pruning.decoder.trace import Batch, stream_error
from apt.plugins.optional.pruning.structure.preconditioner import Scaling, scalings
from apt.plugins.optional.pruning.structure.reconstruct import Cut

#: Steps of L-BFGS for each window.
STEPS: Final = 30

#: So many neighbouring blocks are fitted together, so that the second can make up for what the first cannot do.
WINDOW: Final = 2

#: Weight of the relative distance from the mended parameters, beside the relative output error.
RIDGE: Final = 3e-2

#: Steps that L-BFGS remembers, fewer in a wide block, where they may take so much memory.
HISTORY: Final = 20
_LEAST_HISTORY: Final = 4
_HISTORY_BYTES: Final = 2_000_000_000


@dataclass(frozen=True)
class Refitted:
    """What is known after a refit.

    :param streams: the residual streams after the last block, of the fitted rows and then of those held back.
    :param errors: the stream's relative squared error on the fitted rows after each block.
    """

    streams: tuple[Tensor, ...]
    errors: tuple[float, ...]


def refit(
    pruned: Decoder,
    cut: Cut,
    fitted: Sequence[Batch],
    held_back: Sequence[Batch] = (),
    *,
    steps: int = STEPS,
    window: int = WINDOW,
) -> Refitted:
    """Refit the blocks of ``pruned`` in place, in order.

    :param pruned: the cut model with the weights of the least-squares pass.
    :param fitted: traced rows of the dense model; ``held_back`` rows only pass through.
    :param window: so many neighbouring blocks are fitted together; the first of them then stays as it is.
    """
    batches = [*fitted, *held_back]
    streams = [batch.streams[0] for batch in batches]
    kept = [block.layer for block in cut.blocks]
    after = [*kept[1:], cut.before.layers]  # the dense block whose input a block's output is to be
    errors = []
    with progress("refitting", len(kept), "blocks") as bar:
        for place in range(len(kept)):
            inside = range(place, min(place + window, len(kept)))
            blocks = Window([pruned.blocks[i].layer for i in inside])
            calls = [{"calls": [batch.attention_calls[kept[i]] for i in inside]} for batch in fitted]
            wanted = [batch.streams[after[inside[-1]]] for batch in fitted]
            valid = [batch.valid for batch in fitted]
            _refit_blocks(blocks, streams[: len(fitted)], wanted, valid, calls, steps)
            with torch.no_grad():
                streams = [
                    pruned.blocks[place].layer(stream, **batch.attention_calls[kept[place]])
                    for stream, batch in zip(streams, batches, strict=True)
                ]
            reached = [batch.streams[after[place]] for batch in fitted]
            errors.append(stream_error(streams[: len(fitted)], reached, valid))
            bar.advance()
    return Refitted(tuple(streams), tuple(errors))


class Window(nn.Module):
    """Neighbouring blocks that are fitted together, run one after another."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, stream: Tensor, calls: Sequence[dict[str, Any]]) -> Tensor:
        """Run the blocks; ``calls`` are the keyword arguments of each."""
        for block, call in zip(self.blocks, calls, strict=True):
            stream = block(stream, **call)
        return stream


def _refit_blocks(
    block: Window,
    streams: Sequence[Tensor],
    wanted: Sequence[Tensor],
    valid: Sequence[Tensor],
    calls: Sequence[dict[str, Any]],
    steps: int,
) -> None:
    """Minimise the relative squared error of the blocks' output against ``wanted``, padding left out."""
    fit = _Fit(block, list(zip(streams, wanted, valid, calls, strict=False)), scalings(block, streams, calls, valid))
    history = history_within(_HISTORY_BYTES, fit.variables, least=_LEAST_HISTORY, most=HISTORY)
    with torch.enable_grad():
        before = fit()
        minimise(fit, fit.variables, steps=steps, history=history, evaluations=2 * steps, least_change=1e-12)
        after = fit()
    block.zero_grad(set_to_none=True)
    if not after <= before:  # also when it is not a number: keep what was there
        fit.reset()


class _Fit:
    """The objective of blocks as a function of scaled variables, which are zero at the mended weights.

    :param parts: stream before the block, stream wanted after it, mask of tokens, keyword arguments; batch by batch.
    """

    def __init__(
        self,
        block: nn.Module,
        parts: Sequence[tuple[Tensor, Tensor, Tensor, dict[str, Any]]],
        scaling: Mapping[nn.Parameter, Scaling],
    ) -> None:
        self._block = block
        self._parts = parts
        self._parameters = list(block.parameters())
        self._scaling = [scaling.get(parameter) for parameter in self._parameters]
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        # An all-zero parameter (a bias that is not used) gets a pull that keeps it there.
        self._norms = [float(value.square().sum().clamp(min=1e-9)) for value in self._start]
        self._scale = max(sum(float((y - x)[v].square().sum()) for x, y, v, _ in parts), 1e-30)
        self.variables = [nn.Parameter(torch.zeros_like(value)) for value in self._start]

    def __call__(self) -> float:
        """Return the objective at the variables and leave its gradient in them."""
        self._put()
        self._block.zero_grad()
        total = 0.0
        for x, y, v, call in self._parts:
            error = (self._block(x, **call) - y)[v].square().sum() / self._scale
            error.backward()
            total += float(error.detach())
        for parameter, start, norm in zip(self._parameters, self._start, self._norms, strict=True):
            pull = RIDGE * (parameter - start).square().sum() / norm
            pull.backward()  # type: ignore[no-untyped-call]  # torch stubs
            total += float(pull.detach())
        for variable, parameter, scaling in zip(self.variables, self._parameters, self._scaling, strict=True):
            assert parameter.grad is not None
            variable.grad = parameter.grad.clone() if scaling is None else scaling(parameter.grad)
        return total

    def reset(self) -> None:
        """Put the mended weights back."""
        with torch.no_grad():
            for parameter, start in zip(self._parameters, self._start, strict=True):
                parameter.copy_(start)

    @torch.no_grad()
    def _put(self) -> None:
        parts = zip(self._parameters, self._start, self.variables, self._scaling, strict=True)
        for parameter, start, variable, scaling in parts:
            parameter.copy_(start + (variable if scaling is None else scaling(variable)))
