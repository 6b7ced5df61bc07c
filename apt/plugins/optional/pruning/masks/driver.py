"""The walk through a model in memory: rows in, block after block in work, the pruned stream out.

A streamed driver makes the same :class:`~..block_work.BlockWork` from a checkpoint; what prunes does not see which.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.errors import BadInputError
from apt.console.progress import progress
from apt.plugins.optional.pruning.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.layers import matrices_of
from apt.plugins.optional.pruning.masks.matrices import output_of
from apt.plugins.optional.pruning.reconstruct import stream_error
from apt.plugins.optional.pruning.trace import calibration_batches

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows


@dataclass(frozen=True)
class Feed:
    """Some rows on their way into the decoder.

    :param order: int64 [rows], which rows of the text these are.
    :param counted: bool [rows, window - 1], whether the token *after* each position counts in the loss.
    :param valid: bool [rows, window], false on padding.
    :param stream: what the first block receives, [rows, window, hidden].
    :param calls: the other arguments of each block's forward call.
    """

    order: Tensor
    ids: Tensor
    counted: Tensor
    valid: Tensor
    stream: Tensor
    calls: tuple[Mapping[str, Any], ...]


def layers_of(model: Any, architecture: Architecture) -> list[nn.Module]:
    """Return the decoder layers in order."""
    count = architecture.dimensions(model.config.to_dict()).layers
    return [model.get_submodule(architecture.layer_prefix.format(i).rstrip(".")) for i in range(count)]


@torch.no_grad()
def feed(model: Any, architecture: Architecture, rows: "Rows") -> list[Feed]:
    """Run the model once to learn what its blocks are called with.

    :raises BadInputError: when a token id lies outside the vocabulary, or the activations are not finite.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if int(rows.ids.min()) < 0 or int(rows.ids.max()) >= vocabulary:
        raise BadInputError(f"the text {rows.source!r} has token ids outside the model's vocabulary of {vocabulary}")
    layers = layers_of(model, architecture)
    feeds = []
    with progress("calibrating", len(rows), "rows") as bar:
        for batch in calibration_batches(rows):
            stream, calls = _calls(model, layers, batch.ids)
            feeds.append(Feed(batch.order, batch.ids, batch.counted, batch.valid, stream, calls))
            bar.advance(len(batch.ids))
    return feeds


def _calls(model: Any, layers: Sequence[nn.Module], ids: Tensor) -> tuple[Tensor, tuple[Mapping[str, Any], ...]]:
    """Return the first block's stream and every block's other arguments."""
    seen: list[dict[str, Any]] = []

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        named = dict(bound.arguments)
        named |= named.pop("kwargs", {})
        seen.append(named)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(remember, with_kwargs=True).remove)
        # One logit a row is computed and thrown away.
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    if not bool(logits.isfinite().all()):
        raise BadInputError("the model's activations are not finite", hint="apt_model test MODEL names the tensors")
    streams = [call.pop("hidden_states") for call in seen]
    return streams[0], tuple(seen)


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
                    index, block, matrices_of(block, architecture), architecture.transposed,
                    streams, dense_streams, dense_outputs, calls, valid, len(feeds), held_back,
                )
            )  # fmt: skip
            streams, dense_streams = _run(block, streams, calls), dense_outputs
            errors.append(stream_error(streams, dense_streams, valid))
            bar.advance()
    return Walked(pruned, tuple(errors))


@torch.no_grad()
def _run(block: nn.Module, streams: Sequence[Tensor], calls: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [output_of(block, stream, call) for stream, call in zip(streams, calls, strict=True)]
