"""The walk through a decoder of which one layer is in memory at a time.

For each layer that stays: the dense layer runs on the dense stream, the method changes it, the changed layer runs on
the stream of the layers changed before, its tensors are written to their places, and the journal is sealed.

Memory: one layer in float32 (in the stored dtype where the method allows it), its activations on
:data:`~apt.plugins.optional.pruning.decoder.trace.BATCH_TOKENS` tokens, what the method sums up (a few matrices of
inputs × inputs; nothing of the kind with effort ``light``) or keeps (with ``fast``: one block's activations on all
rows), and the residual streams as far as :mod:`.streams` keeps them in memory. Where layers are dropped, the one before
them is read a second time rather than held meanwhile.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.blocks import inputs_of
from apt.plugins.optional.pruning.decoder.frame import Entry
from apt.plugins.optional.pruning.decoder.layers import LayerSource
from apt.plugins.optional.pruning.decoder.trace import CalibrationBatch, finite, stream_error
from apt.plugins.optional.pruning.streaming.streams import StreamPlace, Streams
from apt.plugins.optional.pruning.streaming.work_directory import WorkDirectory

#: Submodules of a block whose inputs are to be looked at during the dense pass.
Watched = Callable[[nn.Module], Sequence[nn.Module]]


@dataclass(frozen=True)
class Change:
    """What became of a layer.

    :param tensors: the layer's tensors by their names in the output, as they are stored.
    :param told: what is to be known of it later, as JSON values.
    """

    tensors: Mapping[str, Tensor]
    told: Mapping[str, Any]


class LayerMethod(Protocol):
    """A way to prune that needs one layer at a time, and knows what its tensors become."""

    #: Dense layers that stay, ascending.
    kept: Sequence[int]
    #: Linear weights may keep the stored dtype.
    stored: bool

    def change(self, step: "Step", told: Sequence[tuple[int, Mapping[str, Any]]]) -> Change:
        """Run the dense pass, change the block and run the pruned pass.

        :param told: (layer, what was told of it) of the layers that are done.
        """
        ...


class Step:
    """One layer that stays, and the streams around it.

    :param place: its number among those that stay; ``following`` the dense layer whose input its output stands for.
    :param streams: before it, in the model pruned so far; ``dense_streams`` in the dense model.
    :param fitted: so many batches are fitted; the others only pass through, to measure.
    """

    def __init__(
        self, source: LayerSource, batches: Sequence[CalibrationBatch], entries: Sequence[Sequence[Mapping[str, Any]]],
        where: tuple[int, int, int], streams: Streams, dense_streams: Streams, space: StreamPlace, *, stored: bool,
        fitted: int,
    ) -> None:  # fmt: skip
        self.place, self.layer, self.following = where
        self.batches = batches
        self.fitted = fitted
        self.streams, self.dense_streams = streams, dense_streams
        self.space = space
        self._source, self._calls, self._stored = source, entries, stored
        hidden = streams[0].shape[-1]
        self.dense_outputs = space.new(f"dense-{self.following:05d}", hidden)
        self.outputs = space.new(f"pruned-{self.following:05d}", hidden)
        self.block: nn.Module | None = None

    def loaded(self) -> nn.Module:
        """Return the dense block, read when it is not there."""
        if self.block is None:
            self.block = self._source.layer(self.layer, stored=self._stored)
        return self.block

    def release(self) -> None:
        """Let the dense block go."""
        self.block = None

    def calls(self, layer: int | None = None) -> list[Mapping[str, Any]]:
        """Return the keyword arguments of a layer's forward call, of this one's when none is named."""
        return [calls[self.layer if layer is None else layer] for calls in self._calls]

    def dense_pass(self, watched: Watched | None = None) -> Iterator[tuple[int, list[Tensor]]]:
        """Run the dense block, and those dropped after it, batch by batch; yield what the watched modules received.

        :raises BadInputError: when the activations are not finite.
        """
        block = self.loaded()
        modules = watched(block) if watched else ()
        for index, call in enumerate(self.calls()):
            with ExitStack() as stack:
                seen = [stack.enter_context(inputs_of(module)) for module in modules]
                output = block(self.dense_streams[index], **call)
            self.dense_outputs.put(index, finite(output))
            yield index, [inputs[0] for inputs in seen]
        del block
        for layer in range(self.layer + 1, self.following):
            self.release()
            run_dense(self._source.layer(layer, stored=self._stored), self.dense_outputs, self.calls(layer))

    def pruned_pass(self, block: nn.Module) -> None:
        """Run the changed block on the pruned stream."""
        for index, call in enumerate(self.calls()):
            self.outputs.put(index, block(self.streams[index], **call))

    def error(self) -> float:
        """Squared distance of the fitted rows' pruned stream from the dense one after the block, relative to that."""
        fitted = range(self.fitted)  # a batch at a time: streams may lie in files
        return stream_error(
            (self.outputs[i] for i in fitted),
            (self.dense_outputs[i] for i in fitted),
            (self.batches[i].valid for i in fitted),
        )


@torch.no_grad()
def walk(
    source: LayerSource,
    method: LayerMethod,
    batches: Sequence[CalibrationBatch],
    entries: Sequence[Entry],
    space: StreamPlace,
    work: WorkDirectory,
    *,
    fitted: int,
) -> tuple[Streams, Streams]:
    """Prune layer after layer, from where the work directory stands.

    :param entries: what reaches the decoder, for each batch.
    :returns: the streams after the last layer, of the dense and of the pruned model.
    """
    calls = [entry.calls for entry in entries]
    kept = list(method.kept)
    dense, pruned = _begin(source, kept, entries, calls, space, work)
    with progress("pruning", len(kept), "layers") as bar:
        bar.advance(len(work.done))
        for place in range(len(work.done), len(kept)):
            where = (place, kept[place], kept[place + 1] if place + 1 < len(kept) else source.layers)
            step = Step(source, batches, calls, where, pruned, dense, space, stored=method.stored, fitted=fitted)
            change = method.change(step, work.told)
            step.release()
            work.finish(step.layer, change.tensors, change.told, (step.dense_outputs, step.outputs))
            for some in (dense, pruned):
                some.discard()
            dense, pruned = step.dense_outputs, step.outputs
            bar.advance()
    return dense, pruned


def _begin(
    source: LayerSource, kept: Sequence[int], entries: Sequence[Entry], calls: Sequence[Sequence[Mapping[str, Any]]],
    space: StreamPlace, work: WorkDirectory,
) -> tuple[Streams, Streams]:  # fmt: skip
    """Return the streams before the layer that comes next: those sealed, or those that enter the decoder."""
    hidden = entries[0].stream.shape[-1]
    if work.done:
        following = [*kept, source.layers][len(work.done)]
        found = tuple(space.new(f"{name}-{following:05d}", hidden) for name in ("dense", "pruned"))
        for some in found:
            some.load()
        return found[0], found[1]
    dense, pruned = (
        space.new(name, hidden).put_all(entry.stream for entry in entries) for name in ("dense-enter", "pruned-enter")
    )
    for layer in range(kept[0]):  # layers dropped before the first that stays
        run_dense(source.layer(layer), dense, [some[layer] for some in calls])
    return dense, pruned


def run_dense(block: nn.Module, streams: Streams, calls: Sequence[Mapping[str, Any]]) -> None:
    """Move streams past a dense layer."""
    for index, call in enumerate(calls):
        streams.put(index, finite(block(streams[index], **call)))
