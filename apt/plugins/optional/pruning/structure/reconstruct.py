"""One pass through the decoder that cuts every block and mends it by least squares.

Sequential: block by block, the inputs are those of the model pruned so far, the target is the dense model's residual
stream. ``o_proj`` and ``down_proj`` are fitted to the dense stream *minus* the pruned one, so that a block also repairs
what the ones before it broke. The block before dropped layers is fitted to the output of the last of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apt.plugins.optional.pruning.decoder.blocks import Block, Decoder, only_input
from apt.plugins.optional.pruning.decoder.branches import Branch
from apt.plugins.optional.pruning.decoder.leastsquares import (
    Choice,
    Gram,
    Problem,
    choose_blocks,
    choose_heads,
    members,
    problem,
)
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.decoder.trace import Batch, stream_error


@dataclass(frozen=True)
class BlockCut:
    """What stays of one block, and its mended matrices.

    :param layer: index of the block in the dense model.
    :param groups: KV groups that stay.
    :param heads: query heads that stay, in the dense numbering.
    :param channels: ff channels that stay.
    :param output: the new ``o_proj`` [hidden, heads * head_dim], or None to keep the dense columns.
    :param down: the new ``down_proj`` [hidden, channels], or None.
    :param head_importance: rise of the attention's squared error per token when a head alone is removed.
    :param stream_error: squared distance of the stream after the block from the dense one, relative to the latter.
    """

    layer: int
    groups: tuple[int, ...]
    heads: tuple[int, ...]
    channels: tuple[int, ...]
    output: Tensor | None
    down: Tensor | None
    head_importance: tuple[float, ...] = ()
    stream_error: float = 0.0

    @classmethod
    def untouched(cls, layer: int, sizes: Sizes) -> "BlockCut":
        """Return the cut that takes nothing away."""
        everything = tuple(range(sizes.kv_groups)), tuple(range(sizes.heads)), tuple(range(sizes.ff))
        return cls(layer, *everything, None, None)


@dataclass(frozen=True)
class Cut:
    """A whole decoder's cut; ``blocks`` are those that stay, in order."""

    before: Sizes
    after: Sizes
    blocks: tuple[BlockCut, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Layers that go."""
        kept = {block.layer for block in self.blocks}
        return tuple(i for i in range(self.before.layers) if i not in kept)


@dataclass(frozen=True)
class Reconstruction:
    """A cut with its loss.

    :param loss: mean nats per counted token of the batches held back from the fit; of the fitted ones when none were.
    """

    cut: Cut
    loss: float


@dataclass(frozen=True)
class Calibration:
    """The traced rows: those that the matrices are fitted on, and those that only measure."""

    fitted: Sequence[Batch]
    held_back: Sequence[Batch] = ()

    @property
    def batches(self) -> list[Batch]:
        """All of them, the fitted ones first."""
        return [*self.fitted, *self.held_back]


@torch.no_grad()
def reconstruct(
    decoder: Decoder,
    calibration: Calibration,
    before: Sizes,
    after: Sizes,
    dropped: Sequence[int],
    *,
    mend: bool = True,
    measure: bool = True,
) -> Reconstruction:
    """Cut the decoder to the sizes ``after`` without the layers ``dropped``.

    :param mend: fit what remains by least squares; else it keeps its dense weights.
    :param measure: compute the loss; else it is NaN.
    """
    batches = calibration.batches
    start = first_changed(before, after, dropped)
    streams = [batch.streams[start].clone() for batch in batches]
    state = _State(batches, streams, len(calibration.fitted), before, after, mend)
    gone = set(dropped)
    kept = [i for i in range(before.layers) if i not in gone]
    cuts = [BlockCut.untouched(layer, before) for layer in range(start)]
    for layer, following in list(zip(kept, [*kept[1:], before.layers], strict=True))[start:]:
        cuts.append(_cut_block(state, decoder.blocks[layer], layer, following))
    loss = math.nan
    if measure:
        first = state.fitted if calibration.held_back else 0
        loss = mean_loss(decoder, batches[first:], state.streams[first:])
    return Reconstruction(Cut(before, after, tuple(cuts)), loss)


@torch.no_grad()
def layer_loss(decoder: Decoder, calibration: Calibration, before: Sizes, after: Sizes, layer: int) -> float:
    """Return the loss when one layer alone is cut to the sizes ``after`` and mended; all others stay dense.

    The MLP is mended also where only attention is cut, as in a whole pass.
    """
    batches = calibration.batches
    streams = [batch.streams[layer].clone() for batch in batches]
    state = _State(batches, streams, len(calibration.fitted), before, after, mend=True)
    block = decoder.blocks[layer]
    if after.attention_weights != before.attention_weights:
        _cut_attention(state, block, layer)
    else:
        state.streams = [batch.middles[layer].clone() for batch in batches]
    _cut_mlp(state, block, layer + 1)
    first = state.fitted if calibration.held_back else 0
    streams = state.streams[first:]
    for following in range(layer + 1, before.layers):
        module = decoder.blocks[following].layer
        calls = [batch.attention_calls[following] for batch in batches[first:]]
        streams = [module(stream, **call) for stream, call in zip(streams, calls, strict=True)]
    return mean_loss(decoder, batches[first:], streams)


def cut_block(
    block: Block, layer: int, following: int, batches: Sequence[Any], streams: Sequence[Tensor], before: Sizes,
    after: Sizes,
) -> BlockCut:  # fmt: skip
    """Cut and mend one block of a pass that somebody else makes.

    :param batches: like :class:`~..decoder.trace.Batch`, of which only ``valid``, ``streams[following]``,
        ``middles[layer]`` and ``attention_calls[layer]`` are looked at; all of them are fitted.
    :param streams: before the block in the model pruned so far; they are moved past it.
    """
    state = _State(list(batches), list(streams), len(batches), before, after, mend=True)
    return _cut_block(state, block, layer, following)


def _cut_block(state: "_State", block: Block, layer: int, following: int) -> BlockCut:
    heads, output = _cut_attention(state, block, layer)
    channels, down = _cut_mlp(state, block, following)
    groups = tuple(sorted({head // state.before.heads_per_group for head in heads.kept}))
    return BlockCut(
        layer, groups, heads.kept, channels.kept, output, down,
        heads.importance, state.error(following),
    )  # fmt: skip


def first_changed(before: Sizes, after: Sizes, dropped: Sequence[int]) -> int:
    """The first block that a cut touches: where only layers go, the one before the first of them."""
    if after.layer_weights != before.layer_weights:
        return 0
    return max(0, min(dropped, default=before.layers) - 1)


@torch.no_grad()
def mean_loss(decoder: Decoder, batches: Sequence[Batch], streams: Sequence[Tensor]) -> float:
    """Mean nats per counted token, given the residual stream after the last block."""
    total, tokens = 0.0, 0
    for batch, stream in zip(batches, streams, strict=True):
        logits = decoder.logits(stream[:, :-1][batch.counted])
        target = batch.ids[:, 1:][batch.counted]
        total += float(torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum"))
        tokens += len(target)
    return total / max(tokens, 1)


@dataclass
class _State:
    """Where a pass stands: ``streams`` are those of the pruned model, before the block that comes next."""

    batches: list[Batch]
    streams: list[Tensor]
    fitted: int
    before: Sizes
    after: Sizes
    mend: bool

    def gram(self, branch: Branch, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Gram:
        """Sum up the fitted batches' tokens, padding left out; ``targets`` are what the branch is to add."""
        gram = Gram(inputs[0].shape[-1], targets[0].shape[-1])
        for batch, x, y in list(zip(self.batches, inputs, targets, strict=True))[: self.fitted]:
            gram.add(*branch.equations(x[batch.valid], y[batch.valid]))
        return gram

    def error(self, following: int) -> float:
        """How far the fitted rows' streams are from those before the dense block ``following``; see BlockCut."""
        fitted = self.batches[: self.fitted]
        wanted = [batch.streams[following] for batch in fitted]
        return stream_error(self.streams[: self.fitted], wanted, [batch.valid for batch in fitted])

    def advance(self, branch: Branch, inputs: Sequence[Tensor], columns: Sequence[int], weight: Tensor) -> None:
        """Add what the branch gives with its matrix cut."""
        index = torch.tensor(columns)
        for stream, x in zip(self.streams, inputs, strict=True):
            stream += branch.added(torch.nn.functional.linear(x[..., index], weight, branch.matrix.bias))


def _cut_attention(state: _State, block: Block, layer: int) -> tuple[Choice, Tensor | None]:
    """Choose and mend the heads of one block; moves the streams past its attention."""
    inputs = [
        only_input(
            block.output.matrix.module, block.attention, block.attention_norm(stream), **batch.attention_calls[layer]
        )
        for batch, stream in zip(state.batches, state.streams, strict=True)
    ]
    targets = [batch.middles[layer] - stream for batch, stream in zip(state.batches, state.streams, strict=True)]
    gram = state.gram(block.output, inputs, targets)
    system = problem(gram, block.output.matrix.weight)
    choice = choose_heads(
        system,
        state.before.head_dim,
        state.before.kv_groups,
        state.before.heads_per_group,
        state.after.kv_groups,
        state.after.heads_per_group,
    )
    columns = members(choice.kept, state.before.head_dim)
    return choice.per_token(gram.tokens), _mend(state, block.output, system, inputs, columns)


def _cut_mlp(state: _State, block: Block, following: int) -> tuple[Choice, Tensor | None]:
    """Choose and mend the ff channels of one block; moves the streams past its MLP.

    :param following: the dense block whose input the stream is to match.
    """
    inputs = [only_input(block.down.matrix.module, block.mlp, block.mlp_norm(stream)) for stream in state.streams]
    targets = [batch.streams[following] - stream for batch, stream in zip(state.batches, state.streams, strict=True)]
    gram = state.gram(block.down, inputs, targets)
    system = problem(gram, block.down.matrix.weight)
    choice = choose_blocks(system, 1, state.after.ff)
    return choice.per_token(gram.tokens), _mend(state, block.down, system, inputs, choice.kept)


def _mend(
    state: _State, branch: Branch, system: Problem, inputs: Sequence[Tensor], columns: Sequence[int]
) -> Tensor | None:
    """Fit the columns that stay, if asked to, and move the streams past the layer."""
    dense = branch.matrix.weight
    mended = system.solve(columns).to(dense.dtype) if state.mend else None
    state.advance(branch, inputs, columns, dense[:, torch.tensor(columns)] if mended is None else mended)
    return mended
