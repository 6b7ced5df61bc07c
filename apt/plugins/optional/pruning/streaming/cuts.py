"""Structured cuts, layer by layer from the files: heads and channels of each block, and what remains of it mended.

The plan is given: without the whole model there is no search. Effort ``light`` sums up the inputs of the last matrices
channel by channel on the dense stream; ``fast`` makes the least-squares pass of :mod:`~..structure.reconstruct`, block
by block, with the activations of one block on the calibration rows in memory.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.loading import empty_model
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.contract import Effort, LayerCut
from apt.plugins.optional.pruning.decoder.blocks import Block, block_of, check_family, sizes_of
from apt.plugins.optional.pruning.decoder.layers import CheckpointLayers, EmptyLayers
from apt.plugins.optional.pruning.decoder.leastsquares import solvable
from apt.plugins.optional.pruning.decoder.sizes import Sizes, describe_plan, removed_share
from apt.plugins.optional.pruning.streaming.drivers import Change, Step
from apt.plugins.optional.pruning.structure.light import ChannelSums, column_norms, light_choice
from apt.plugins.optional.pruning.structure.reconstruct import BlockCut, Cut, cut_block, first_changed
from apt.plugins.optional.pruning.structure.surgery import cut_config, cut_shape, cut_tensors

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint

_Told = Sequence[tuple[int, Mapping[str, Any]]]

#: What is remembered of a block's cut: everything but its new matrices, and the scores of channels, which nobody reads.
_REMEMBERED: Final = ("groups", "heads", "channels", "head_importance", "stream_error")


@dataclass(frozen=True)
class CutPlan:
    """A plan for a checkpoint.

    :param dropped: layers that go, in the dense numbering.
    """

    before: Sizes
    after: Sizes
    dropped: tuple[int, ...] = ()
    effort: Effort = "light"
    smaller = True

    @classmethod
    def of(
        cls, checkpoint: "Checkpoint", after: Sizes, dropped: Sequence[int] = (), effort: Effort = "light"
    ) -> "CutPlan":
        """Make the plan for a checkpoint.

        :raises UnsupportedError: for an architecture that the surgery does not know, an effort that needs the whole
            model, and a cut of the hidden size.
        """
        check_family(checkpoint.architecture)
        before = sizes_of(checkpoint.architecture, checkpoint.config)
        if after.hidden != before.hidden:
            raise UnsupportedError("the hidden size cannot be cut layer by layer", hint="cut the model in memory")
        if effort == "full":
            raise UnsupportedError(f"effort {effort} needs the whole model in memory", hint="--effort light or fast")
        return cls(before, after, tuple(sorted(dropped)), effort)

    @cached_property
    def text(self) -> str:
        """The plan in a line."""
        return describe_plan(self.after, self.dropped)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result."""
        return {"after": dataclasses.asdict(self.after), "dropped": list(self.dropped), "effort": self.effort}

    def kept(self, layers: int) -> list[int]:
        """Return the layers that stay."""
        return [layer for layer in range(layers) if layer not in self.dropped]

    def config(self, checkpoint: "Checkpoint") -> dict[str, Any]:
        """Return the config of the output."""
        everything = [BlockCut.untouched(layer, self.before) for layer in self.kept(self.before.layers)]
        return cut_config(checkpoint.config, checkpoint.architecture, Cut(self.before, self.after, tuple(everything)))

    def shape(self, checkpoint: "Checkpoint", name: str) -> tuple[int, ...]:
        """Return the shape of a layer's tensor in the output."""
        return cut_shape(name, checkpoint.tensors[name].shape, checkpoint.architecture, self.after)

    def method(self, checkpoint: "Checkpoint", source: CheckpointLayers) -> "CutMethod":
        """Return what cuts the blocks."""
        return CutMethod(self, checkpoint, source)

    def layer_cuts(self, checkpoint: "Checkpoint", told: _Told) -> list[LayerCut]:
        """Return the cut layer by layer."""
        from apt.plugins.optional.pruning.structure.layer_cuts import layer_cuts

        return list(layer_cuts(Cut(self.before, self.after, recalled(told))))

    def removed_share(self, told: _Told) -> float:
        """Return the share of the linear weights that is gone."""
        return removed_share(self.before, self.after)


def recalled(told: _Told) -> tuple[BlockCut, ...]:
    """Return the cuts of finished blocks as they are remembered: without their matrices."""
    return tuple(
        BlockCut(
            layer, tuple(t["groups"]), tuple(t["heads"]), tuple(t["channels"]), None, None,
            tuple(t["head_importance"]), t["stream_error"],
        )
        for layer, t in told
    )  # fmt: skip


class CutMethod:
    """The cut of one block after the other."""

    def __init__(self, plan: CutPlan, checkpoint: "Checkpoint", source: CheckpointLayers) -> None:
        self.kept = plan.kept(plan.before.layers)
        #: Products are float32 all the same; only the memory is less.
        self.stored = plan.effort == "light"
        self._plan = plan
        self._checkpoint = checkpoint
        self._source = source
        self._dimensions = checkpoint.architecture.dimensions(checkpoint.config)
        config = plan.config(checkpoint)
        self._cut_layers = EmptyLayers(empty_model(checkpoint, config), checkpoint.architecture)
        self._start = first_changed(plan.before, plan.after, plan.dropped)

    @torch.no_grad()
    def change(self, step: Step, told: _Told) -> Change:
        """Choose, cut, mend and run the block; see :class:`~.drivers.LayerMethod`."""
        if step.layer < self._start:
            for _ in step.dense_pass():
                pass
            cut = BlockCut.untouched(step.layer, self._plan.before)
        elif self._plan.effort == "light":
            cut = self._light(step)
        else:
            cut = self._fast(step)
        step.release()
        architecture = self._source.architecture
        blocks = (*recalled(told), cut)
        dense = {name: self._checkpoint.read(name) for name in self._source.names_of(step.layer)}
        tensors = dict(cut_tensors(dense, architecture, Cut(self._plan.before, self._plan.after, blocks)))
        del dense
        prefix = architecture.layer_prefix.format(step.place)
        inner = ((name.removeprefix(prefix), value) for name, value in tensors.items())
        step.pruned_pass(self._cut_layers.filled(step.place, inner, stored=self.stored))
        cut = dataclasses.replace(cut, stream_error=step.error())
        return Change(tensors, {name: getattr(cut, name) for name in _REMEMBERED})

    def _view(self, block: nn.Module) -> Block:
        return block_of(block, self._source.architecture, self._dimensions)

    def _light(self, step: Step) -> BlockCut:
        """Choose by the sums of one forward pass."""
        before, after = self._plan.before, self._plan.after
        output_sums, down_sums = ChannelSums(before.heads * before.head_dim), ChannelSums(before.ff)

        def last_matrices(block: nn.Module) -> list[nn.Module]:
            view = self._view(block)
            return [view.output.matrix.module, view.down.matrix.module]

        for index, (outputs, downs) in step.dense_pass(last_matrices):
            if index < step.fitted:
                valid = step.batches[index].valid
                output_sums.add(outputs[valid])
                down_sums.add(downs[valid])
        view = self._view(step.loaded())
        norms = column_norms(view.output.matrix.weight), column_norms(view.down.matrix.weight)
        choice = light_choice(output_sums, norms[0], down_sums, norms[1], before, after)
        return BlockCut(step.layer, choice.groups, choice.heads, choice.channels, None, None, choice.head_scores)

    def _fast(self, step: Step) -> BlockCut:
        """Choose and mend by least squares."""
        middles: list[Tensor] = []
        for index, (middle,) in step.dense_pass(lambda block: [self._view(block).mlp_norm]):
            if index < step.fitted:
                middles.append(middle)
        calls = step.calls()
        batches = [
            _Seen(
                step.batches[i].valid, {step.following: step.dense_outputs[i]}, {step.layer: middles[i]},
                {step.layer: calls[i]},
            )
            for i in range(step.fitted)
        ]  # fmt: skip
        streams = [step.streams[i].clone() for i in range(step.fitted)]
        with solvable():
            return cut_block(
                self._view(step.loaded()), step.layer, step.following, batches, streams, self._plan.before,
                self._plan.after,
            )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What the pass over one block looks at in a batch; see :func:`~.reconstruct.cut_block`."""

    valid: Tensor
    streams: Mapping[int, Tensor]
    middles: Mapping[int, Tensor]
    attention_calls: Mapping[int, Mapping[str, Any]]
