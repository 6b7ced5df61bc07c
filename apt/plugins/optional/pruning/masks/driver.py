"""The walk through a model in memory: rows in, block after block in work, the pruned stream out.

A streamed driver makes the same :class:`~.decoder.block_work.BlockWork` from a checkpoint; what prunes does not see
which.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.decoder.frame import layers_path
from apt.plugins.optional.pruning.decoder.layers import ModelLayers, linear_modules
from apt.plugins.optional.pruning.decoder.trace import CalibrationBatch, calibration_batches, finite, stream_error
from apt.plugins.optional.pruning.masks.linear import output_of

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows


@dataclass(frozen=True)
class Feed(CalibrationBatch):
    """Some rows on their way into the decoder.

    :param stream: what the first block receives, [rows, window, hidden].
    :param calls: the other arguments of each block's forward call.
    """

    stream: Tensor
    calls: tuple[Mapping[str, Any], ...]


def layers_of(model: Any, architecture: Architecture) -> list[nn.Module]:
    """Return the decoder layers in order."""
    return list(model.get_submodule(layers_path(architecture)))


@torch.no_grad()
def feed(model: Any, architecture: Architecture, rows: "Rows") -> list[Feed]:
    """Return the rows as they reach the first block, and what all blocks are called with.

    :raises BadInputError: when a token id lies outside the vocabulary.
    """
    frame = ModelLayers(model, architecture).frame()
    feeds = []
    for batch in calibration_batches(rows):
        entry = frame.enter(batch.ids, source=rows.source)
        feeds.append(Feed(batch.order, batch.ids, batch.counted, batch.valid, entry.stream, entry.calls))
    return feeds


@dataclass(frozen=True)
class Walked:
    """What a walk leaves behind.

    :param model: the pruned model, a copy.
    :param errors: the stream's squared error after each block, relative to the dense stream's square.
    """

    model: Any
    errors: tuple[float, ...]


def walk(
    model: Any,
    architecture: Architecture,
    feeds: Sequence[Feed],
    prune_block: BlockMethod,
    *,
    held_back: frozenset[int] = frozenset(),
    what: str = "pruning",
) -> Walked:
    """Prune a copy of the model block by block.

    :param prune_block: changes the block of a :class:`BlockWork` in place.
    :param held_back: see :class:`BlockWork`.
    :param what: for the progress bar.
    :raises BadInputError: when the activations are not finite.
    """
    pruned = copy.deepcopy(model)
    streams = dense_streams = [f.stream for f in feeds]
    valid = [f.valid for f in feeds]
    errors = []
    layers = layers_of(pruned, architecture)
    with progress(what, len(layers), "blocks") as bar:
        for index, block in enumerate(layers):
            calls = [f.calls[index] for f in feeds]
            dense_outputs = _run(block, dense_streams, calls)
            prune_block(
                BlockWork(
                    index, block, linear_modules(block, architecture), architecture.transposed,
                    streams, dense_streams, dense_outputs, calls, valid, len(feeds), held_back,
                )
            )  # fmt: skip
            streams, dense_streams = _run(block, streams, calls), dense_outputs
            errors.append(stream_error(streams, dense_streams, valid))
            bar.advance()
    return Walked(pruned, tuple(errors))


@torch.no_grad()
def _run(block: nn.Module, streams: Sequence[Tensor], calls: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [finite(output_of(block, stream, call)) for stream, call in zip(streams, calls, strict=True)]
