"""Which heads and channels stay by a metric that needs one forward pass: the cheapest cut, for models of any size.

What is lost with an input of ``o_proj`` or ``down_proj`` is its column times the input: on average over the tokens
``E[x^2] * |W_column|^2``. FLAP (An et al., 2024) takes the variance instead of the second moment, since it puts the
mean into a bias; stock decoders have no such bias, so here the mean is lost too and counts. Nothing is fitted again.
The driver may hold one layer at a time: a layer's choice depends on its own sums only.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.decoder.blocks import Decoder, inputs_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.decoder.trace import batches_of
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.structure.plans import Budget, shapes
from apt.plugins.optional.pruning.structure.reconstruct import BlockCut, Cut

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows


class ChannelSums:
    """Sums over tokens of the inputs of a linear layer, float64 [inputs]."""

    def __init__(self, inputs: int) -> None:
        self.squares = torch.zeros(inputs, dtype=torch.float64)
        self.total = torch.zeros(inputs, dtype=torch.float64)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Count tokens: ``x`` [tokens, inputs], padding left out."""
        wide = x.to(torch.float64)
        self.squares += wide.square().sum(0)
        self.total += wide.sum(0)
        self.tokens += len(x)

    @property
    def variance(self) -> Tensor:
        """Variance of each input, [inputs]; what FLAP weighs with."""
        count = max(self.tokens, 1)
        return (self.squares / count - (self.total / count).square()).clamp(min=0.0)


@dataclass(frozen=True)
class LightChoice:
    """What stays of one layer, in the dense numbering, ascending; scores are squared error per token."""

    groups: tuple[int, ...]
    heads: tuple[int, ...]
    channels: tuple[int, ...]
    head_scores: tuple[float, ...]


def light_choice(
    output_sums: ChannelSums, output_norms: Tensor, down_sums: ChannelSums, down_norms: Tensor, before: Sizes,
    after: Sizes,
) -> LightChoice:  # fmt: skip
    """Choose what stays of a layer.

    :param output_sums: of the inputs of ``o_proj`` on the calibration text; ``down_sums`` of those of ``down_proj``.
    :param output_norms: squared norm of each column of ``o_proj``, [heads * head_dim]; ``down_norms`` [ff] likewise.
    """
    head_scores = _scores(output_sums, output_norms).view(before.heads, before.head_dim).sum(1)
    by_group = head_scores.view(before.kv_groups, before.heads_per_group)
    groups = best(by_group.sum(1), after.kv_groups)
    heads = [
        group * before.heads_per_group + head
        for group in groups
        for head in best(by_group[group], after.heads_per_group)
    ]
    channels = best(_scores(down_sums, down_norms), after.ff)
    return LightChoice(groups, tuple(heads), channels, tuple(head_scores.tolist()))


def column_norms(weight: Tensor) -> Tensor:
    """Return the squared norm of each column of a matrix [outputs, inputs], float64 [inputs]."""
    return weight.to(torch.float64).square().sum(0)


def best(scores: Tensor, count: int) -> tuple[int, ...]:
    """Return the places of the ``count`` largest scores, ascending; of equals the first ones stay."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))


def even_plan(before: Sizes, budget: Budget, goal: Goal, *, heads_divide_hidden: bool) -> Sizes:
    """Return the plan of a light cut: all layers stay, attention and MLP keep shares as equal as legal sizes allow.

    Nothing is measured, so nothing could tell which layers can go.

    :raises UnsupportedError: when only plans without some layers meet the goal.
    """
    found = shapes(before, budget, heads_divide_hidden=heads_divide_hidden)
    whole = [s for s in found if s.layers == before.layers and s != before]
    if not whole:
        raise UnsupportedError(
            f"no legal cut that keeps all layers gives {goal}", hint="the efforts fast and full also drop layers"
        )

    def unequal(sizes: Sizes) -> float:
        attention = sizes.attention_weights / before.attention_weights
        mlp = sizes.mlp_weights / before.mlp_weights
        return abs(math.log(attention / mlp))

    return min(whole, key=unequal)


@torch.no_grad()
def light_cut(decoder: Decoder, rows: "Rows", before: Sizes, after: Sizes) -> Cut:
    """Run a dense model in memory once over the rows and choose in every layer; nothing is fitted."""
    output_sums = [ChannelSums(block.output.matrix.weight.shape[1]) for block in decoder.blocks]
    down_sums = [ChannelSums(block.down.matrix.weight.shape[1]) for block in decoder.blocks]
    for batch in batches_of(decoder, rows):
        with ExitStack() as stack:
            outputs = [stack.enter_context(inputs_of(block.output.matrix.module)) for block in decoder.blocks]
            downs = [stack.enter_context(inputs_of(block.down.matrix.module)) for block in decoder.blocks]
            decoder.model(input_ids=batch.ids, use_cache=False, logits_to_keep=1)
        for sums, seen in zip([*output_sums, *down_sums], [*outputs, *downs], strict=True):
            sums.add(seen[0][batch.valid])
    cuts = []
    for layer, block in enumerate(decoder.blocks):
        choice = light_choice(
            output_sums[layer], column_norms(block.output.matrix.weight),
            down_sums[layer], column_norms(block.down.matrix.weight), before, after,
        )  # fmt: skip
        cuts.append(BlockCut(layer, choice.groups, choice.heads, choice.channels, None, None, choice.head_scores))
    return Cut(before, after, tuple(cuts))


def _scores(sums: ChannelSums, norms: Tensor) -> Tensor:
    return sums.squares / max(sums.tokens, 1) * norms.to(torch.float64)
