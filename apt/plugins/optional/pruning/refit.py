"""Refit of whole blocks: all matrices of a cut block, so that its output is the dense model's again.

Least squares mends only the last matrix of attention and MLP. Here every parameter of a block is fitted to the dense
residual stream after it, block by block on the stream of the blocks refitted before, by full-batch L-BFGS (Liu and
Nocedal, 1989) with a ridge towards the mended weights. The objective is the block's output error, never the language
model's loss, and there is nothing random in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.console.progress import progress
from apt.plugins.optional.pruning.blocks import Decoder
from apt.plugins.optional.pruning.reconstruct import Cut, stream_error
from apt.plugins.optional.pruning.trace import Batch

#: Steps of L-BFGS for each block.
STEPS: Final = 30

#: Weight of the relative distance from the mended parameters, beside the relative output error.
RIDGE: Final = 1e-3


@dataclass(frozen=True)
class Refitted:
    """What is known after a refit.

    :param streams: the residual streams after the last block, of the fitted rows and then of those held back.
    :param errors: the stream's relative squared error on the fitted rows after each block.
    """

    streams: tuple[Tensor, ...]
    errors: tuple[float, ...]


def refit(pruned: Decoder, cut: Cut, fitted: Sequence[Batch], held_back: Sequence[Batch] = ()) -> Refitted:
    """Refit the blocks of ``pruned`` in place, in order.

    :param pruned: the cut model with the weights of the least-squares pass.
    :param fitted: traced rows of the dense model; ``held_back`` rows only pass through.
    """
    batches = [*fitted, *held_back]
    streams = [batch.streams[0] for batch in batches]
    kept = [block.layer for block in cut.blocks]
    errors = []
    with progress("refitting", len(kept), "blocks") as bar:
        for place, layer in enumerate(kept):
            following = kept[place + 1] if place + 1 < len(kept) else cut.before.layers
            block = pruned.blocks[place].layer
            calls = [batch.attention_calls[layer] for batch in batches]
            wanted = [batch.streams[following] for batch in fitted]
            valid = [batch.valid for batch in fitted]
            _refit_block(block, streams[: len(fitted)], wanted, valid, calls)
            with torch.no_grad():
                streams = [block(stream, **call) for stream, call in zip(streams, calls, strict=True)]
            errors.append(stream_error(streams[: len(fitted)], wanted, valid))
            bar.advance()
    return Refitted(tuple(streams), tuple(errors))


def _refit_block(
    block: nn.Module,
    streams: Sequence[Tensor],
    wanted: Sequence[Tensor],
    valid: Sequence[Tensor],
    calls: Sequence[dict[str, Any]],
) -> None:
    """Minimise the relative squared error of ``block(stream)`` against ``wanted``, padding left out."""
    parameters = list(block.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    # An all-zero parameter (a bias that is not used) gets a pull that keeps it there.
    norms = [float(value.square().sum().clamp(min=1e-9)) for value in start]
    parts = list(zip(streams, wanted, valid, calls, strict=False))
    scale = max(sum(float((y - x)[v].square().sum()) for x, y, v, _ in parts), 1e-30)
    optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def objective() -> float:
        optimizer.zero_grad()
        total = 0.0
        for x, y, v, call in parts:
            error = (block(x, **call) - y)[v].square().sum() / scale
            error.backward()
            total += float(error.detach())
        pulls = [(p - s).square().sum() / n for p, s, n in zip(parameters, start, norms, strict=True)]
        pull = RIDGE * torch.stack(pulls).sum()
        pull.backward()  # type: ignore[no-untyped-call]  # torch stubs
        return total + float(pull.detach())

    with torch.enable_grad():
        before = objective()
        optimizer.step(objective)  # type: ignore[no-untyped-call]  # torch stubs
        after = objective()
    optimizer.zero_grad(set_to_none=True)
    if not after <= before:  # also when it is not a number: keep what was there
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
