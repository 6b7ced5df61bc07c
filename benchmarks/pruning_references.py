"""Published criteria of structured pruning, written from their papers: what goes, and nothing is mended.

Not a script of its own; ``pruning_quality.py`` measures them. FLAP's fluctuation metric (An et al., 2024, without its
bias compensation, which no stock model has a place for), mean absolute activation (Muralidharan et al., 2024),
magnitude and first-order Taylor of the mean loss (Ma et al., 2023), block influence (Men et al., 2024), and greedy
removal of the layer whose absence costs least. They remove KV groups and ff channels, or layers; columns that go are
set to zero, which computes the same as cutting them and has no illegal sizes.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from pruning_table import Row, Subject
from torch import Tensor

from apt.evaluation.scoring import perplexity, score_rows
from apt.plugins.optional.pruning.decoder.blocks import Decoder, inputs_of
from apt.plugins.optional.pruning.decoder.matrices import Matrix
from apt.plugins.optional.pruning.decoder.sizes import Sizes, removed_share
from apt.plugins.optional.pruning.decoder.trace import batches_of, trace
from apt.plugins.optional.pruning.structure.light import ChannelSums, best, column_norms

#: Scores of a layer's query heads and ff channels; the larger stay.
LayerScores = tuple[Tensor, Tensor]


class InputSums(ChannelSums):
    """Sums of absolute values besides."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs)
        self.absolute = torch.zeros(inputs, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Count tokens: ``x`` [tokens, inputs], padding left out."""
        super().add(x)
        self.absolute += x.double().abs().sum(0)


def input_sums(subject: Subject) -> list[tuple[InputSums, InputSums]]:
    """Sums of the inputs of o and down of every layer of the dense model."""
    decoder = subject.decoder()
    modules = [(block.output.matrix.module, block.down.matrix.module) for block in decoder.blocks]
    widths = [(b.output.matrix.weight.shape[1], b.down.matrix.weight.shape[1]) for b in decoder.blocks]
    found = [(InputSums(wide), InputSums(ff)) for wide, ff in widths]
    for batch in batches_of(decoder, subject.calibration):
        with ExitStack() as stack, torch.no_grad():
            seen = [[stack.enter_context(inputs_of(module)) for module in pair] for pair in modules]
            subject.model(input_ids=batch.ids, use_cache=False)
        for sums, inputs in zip(found, seen, strict=True):
            for one, received in zip(sums, inputs, strict=True):
                one.add(received[0][batch.valid])
    return found


def flap_scores(subject: Subject) -> list[LayerScores]:
    """FLAP's WIFV: variance of each input times the squared norm of its column."""
    found = []
    for block, (outputs, downs) in zip(subject.decoder().blocks, input_sums(subject), strict=True):
        heads = outputs.variance * column_norms(block.output.matrix.weight)
        found.append((_by_head(heads, subject.sizes), downs.variance * column_norms(block.down.matrix.weight)))
    return found


def activation_scores(subject: Subject) -> list[LayerScores]:
    """Mean absolute activation at the inputs of o and down."""
    return [(_by_head(wide.absolute, subject.sizes), ff.absolute) for wide, ff in input_sums(subject)]


def magnitude_scores(subject: Subject) -> list[LayerScores]:
    """Sum of absolute weights of a head's and a channel's rows and columns."""
    return _weight_scores(subject.decoder(), subject.sizes, lambda matrix: matrix.weight.abs())


def taylor_scores(subject: Subject) -> list[LayerScores]:
    """Sum of |weight * gradient of the mean loss| over a head's and a channel's rows and columns."""
    decoder = subject.decoder(copy.deepcopy(subject.model))
    for batch in batches_of(decoder, subject.calibration):
        ids, counted = batch.ids, batch.counted
        logits = decoder.model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss: Any = torch.nn.functional.cross_entropy(logits[counted], ids[:, 1:][counted], reduction="sum")
        (loss / subject.calibration.tokens).backward()

    def importance(matrix: Matrix) -> Tensor:
        assert matrix.gradient is not None
        return (matrix.weight * matrix.gradient).abs()

    return _weight_scores(decoder, subject.sizes, importance)


def _weight_scores(decoder: Decoder, sizes: Sizes, importance: Callable[[Matrix], Tensor]) -> list[LayerScores]:
    """Sum the importance of single weights over what a head and a channel are made of."""
    found = []
    for block in decoder.blocks:
        parts = {role: importance(matrix) for role, matrix in block.matrices.items()}
        own = parts["q"].view(sizes.heads, -1).sum(1) + parts["o"].sum(0).view(sizes.heads, -1).sum(1)
        shared = parts["k"].view(sizes.kv_groups, -1).sum(1) + parts["v"].view(sizes.kv_groups, -1).sum(1)
        heads = own + shared.repeat_interleave(sizes.heads_per_group) / sizes.heads_per_group
        rows = sum((parts[role].sum(1) for role in ("gate", "up") if role in parts), torch.zeros(sizes.ff))
        found.append((heads, rows + parts["down"].sum(0)))
    return found


def _by_head(channels: Tensor, sizes: Sizes) -> Tensor:
    return channels.view(sizes.heads, sizes.head_dim).sum(1)


@torch.no_grad()
def thinned(subject: Subject, scores: list[LayerScores], groups: int, ff: int) -> Any:
    """Return a copy of the model in which whole KV groups and ff channels of the lowest scores have no effect."""
    model = copy.deepcopy(subject.model)
    sizes = subject.sizes
    for block, (heads, channels) in zip(subject.decoder(model).blocks, scores, strict=True):
        kept = best(heads.view(sizes.kv_groups, -1).sum(1), groups)
        gone = torch.ones(sizes.kv_groups, dtype=torch.bool)
        gone[list(kept)] = False
        wide = gone.repeat_interleave(sizes.heads_per_group * sizes.head_dim)
        block.output.matrix.weight[:, wide] = 0.0
        stay = torch.zeros(sizes.ff, dtype=torch.bool)
        stay[list(best(channels, ff))] = True
        block.down.matrix.weight[:, ~stay] = 0.0
    return model


@torch.no_grad()
def without_layers(subject: Subject, dropped: list[int]) -> Any:
    """Return a copy of the model in which some layers add nothing."""
    model = copy.deepcopy(subject.model)
    for layer in dropped:
        block = subject.decoder(model).blocks[layer]
        for last in (block.output, block.down):
            for parameter in last.matrix.module.parameters():  # its bias too
                parameter.zero_()
    return model


@torch.no_grad()
def least_influential(subject: Subject, count: int) -> list[int]:
    """Layers of the least block influence (ShortGPT): one less the mean cosine of the stream before and after."""
    batches = trace(subject.decoder(), subject.calibration)
    influence = []
    for layer in range(subject.sizes.layers):
        cosines = [
            torch.nn.functional.cosine_similarity(b.streams[layer], b.streams[layer + 1], dim=-1)[b.valid]
            for b in batches
        ]
        influence.append(1.0 - float(torch.cat(cosines).mean()))
    return sorted(range(subject.sizes.layers), key=influence.__getitem__)[:count]


def greedy_layers(subject: Subject, count: int) -> list[int]:
    """Layers whose removal costs least on the calibration rows, one after another."""
    dropped: list[int] = []
    while len(dropped) < count:
        left = [i for i in range(subject.sizes.layers) if i not in dropped]
        losses = [
            perplexity(score_rows(without_layers(subject, [*dropped, layer]), subject.calibration)).value
            for layer in left
        ]
        dropped.append(left[losses.index(min(losses))])
    return dropped


def reference_rows(subject: Subject, ratio: float, published: tuple[int, int] | None = None) -> Iterator[Row]:
    """Measure every reference at a share of the decoder's linear weights.

    :param published: KV groups and ff that stay of the width references, where a published figure is to be repeated.
    """
    yield from width_rows(subject, published or width_of(subject.sizes, ratio))
    yield from depth_rows(subject, ratio)


def width_of(sizes: Sizes, ratio: float) -> tuple[int, int]:
    """Return KV groups and ff channels that stay: groups by the ratio or a little more, ff takes the rest of it.

    Not more than the ratio goes, unless a single KV group or channel is more.
    """
    groups = max(1, math.ceil(sizes.kv_groups * (1.0 - ratio)))
    left = (1.0 - ratio) * sizes.layer_weights - replace(sizes, kv_groups=groups).attention_weights
    ff = math.ceil(left / replace(sizes, ff=1).mlp_weights - 1e-9)
    return groups, min(max(1, ff), sizes.ff)


def width_rows(subject: Subject, left: tuple[int, int]) -> Iterator[Row]:
    """Measure the criteria for KV groups and ff channels, of which ``left`` stay in every layer."""
    groups, ff = left
    share = removed_share(subject.sizes, replace(subject.sizes, kv_groups=groups, ff=ff))
    methods: dict[str, Callable[[Subject], list[LayerScores]]] = {
        "FLAP's metric": flap_scores, "mean |activation|": activation_scores,
        "magnitude": magnitude_scores, "Taylor": taylor_scores,
    }  # fmt: skip
    for name, scores in methods.items():
        begun = time.process_time()
        model = thinned(subject, scores(subject), groups, ff)
        seconds = time.process_time() - begun
        yield subject.measured(name, share, model, seconds, f"{groups} KV groups, ff {ff}")


def depth_rows(subject: Subject, ratio: float) -> Iterator[Row]:
    """Measure the criteria for layers, of which as many go as come nearest to the ratio."""
    layers = subject.sizes.layers
    count = max(1, round(ratio * layers))
    methods: dict[str, Callable[[Subject, int], list[int]]] = {
        "block influence": least_influential, "greedy layers": greedy_layers,
    }  # fmt: skip
    for name, choose in methods.items():
        begun = time.process_time()
        dropped = choose(subject, count)
        seconds = time.process_time() - begun
        model = without_layers(subject, dropped)
        plan = f"without {', '.join(map(str, sorted(dropped)))}"
        yield subject.measured(name, count / layers, model, seconds, plan)
