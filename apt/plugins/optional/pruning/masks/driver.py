"""The walk through a model in memory: rows in, block after block in work, the pruned stream out.

A streamed driver makes the same :class:`~..block_work.BlockWork` from a checkpoint; what prunes does not see which.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.errors import BadInputError
from apt.console.progress import progress
from apt.plugins.optional.pruning.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.masks.matrices import output_of
from apt.plugins.optional.pruning.reconstruct import stream_error

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

#: Tokens of one forward pass.
BATCH_TOKENS: Final = 2048

#: Roles of the linear matrices, in the order of the forward pass.
ROLES: Final = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")


@dataclass(frozen=True)
class Feed:
    """Some rows on their way into the decoder.

    :param counted: bool [rows, window - 1], whether the token *after* each position counts in the loss.
    :param valid: bool [rows, window], false on padding.
    :param stream: what the first block receives, [rows, window, hidden].
    :param calls: the other arguments of each block's forward call.
    """

    ids: Tensor
    counted: Tensor
    valid: Tensor
    stream: Tensor
    calls: tuple[Mapping[str, Any], ...]


def layers_of(model: Any, architecture: Architecture) -> list[nn.Module]:
    """Return the decoder layers in order."""
    count = architecture.dimensions(model.config.to_dict()).layers
    return [model.get_submodule(architecture.layer_prefix.format(i).rstrip(".")) for i in range(count)]


def matrices_of(layer: nn.Module, architecture: Architecture) -> dict[str, nn.Module]:
    """Return role → linear module of one decoder layer, in the order of the forward pass."""
    return {role: layer.get_submodule(architecture.roles[role]) for role in ROLES if role in architecture.roles}


@torch.no_grad()
def feed(model: Any, architecture: Architecture, rows: "Rows") -> list[Feed]:
    """Run the model once to learn what its blocks are called with.

    :raises BadInputError: when a token id lies outside the vocabulary, or the activations are not finite.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if int(rows.ids.min()) < 0 or int(rows.ids.max()) >= vocabulary:
        raise BadInputError(f"the text {rows.source!r} has token ids outside the model's vocabulary of {vocabulary}")
    layers = layers_of(model, architecture)
    step = max(1, BATCH_TOKENS // rows.ids.shape[1])
    # Rows of like length together, so that little is computed for padding.
    order = rows.lengths.argsort(descending=True, stable=True)
    feeds = []
    with progress("calibrating", len(order), "rows") as bar:
        for some in torch.split(order, step):
            lengths = rows.lengths[some]
            width = int(lengths.max())
            ids = rows.ids[some, :width]
            stream, calls = _calls(model, layers, ids)
            valid = torch.arange(width)[None] < lengths[:, None]
            feeds.append(Feed(ids, rows.counted[some, : width - 1], valid, stream, calls))
            bar.advance(len(some))
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
    :param errors: the stream's squared error after each block on the fitted feeds, relative to the dense stream.
    """

    model: Any
    errors: tuple[float, ...]


def walk(
    model: Any,
    architecture: Architecture,
    fitted: Sequence[Feed],
    prune_block: BlockMethod,
    held_back: Sequence[Feed] = (),
    *,
    what: str = "pruning",
) -> Walked:
    """Prune a copy of the model block by block.

    :param prune_block: changes the block of a :class:`BlockWork` in place.
    :param held_back: rows that only pass through, for the method to measure on.
    :param what: for the progress bar.
    """
    pruned = copy.deepcopy(model)
    feeds = [*fitted, *held_back]
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
                    streams, dense_streams, dense_outputs, calls, valid, len(fitted),
                )
            )  # fmt: skip
            streams, dense_streams = _run(block, streams, calls), dense_outputs
            some = slice(0, len(fitted))
            errors.append(stream_error(streams[some], dense_streams[some], valid[some]))
            bar.advance()
    return Walked(pruned, tuple(errors))


@torch.no_grad()
def _run(block: nn.Module, streams: Sequence[Tensor], calls: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [output_of(block, stream, call) for stream, call in zip(streams, calls, strict=True)]
