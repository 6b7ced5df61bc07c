"""Masks, layer by layer from the files: sizes stay, so every tensor keeps its name and shape."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apt.plugins.optional.pruning.contract import Effort, LayerCut
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork, batches_to_hold_back
from apt.plugins.optional.pruning.decoder.layers import CheckpointLayers, linear_modules
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.streaming.drivers import Change, Step
from apt.plugins.optional.pruning.streaming.streams import StreamPart

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class MaskPlan:
    """What is to become of a checkpoint when a mask method goes through it.

    :param prune_block: changes the block of a :class:`~.decoder.block_work.BlockWork` in place.
    :param text: the plan in a line; it and ``identity`` decide whether interrupted work is this work.
    :param identity: everything else that decides the result, as JSON values.
    """

    prune_block: BlockMethod
    text: str
    identity: Mapping[str, Any]
    smaller = False

    @classmethod
    def of(
        cls, prune_block: BlockMethod, text: str, goal: Goal, *, strategy: str, effort: Effort,
        seed: int = 0,
    ) -> "MaskPlan":  # fmt: skip
        """Return the plan of a strategy whose method needs one block at a time."""
        return cls(prune_block, text, {"strategy": strategy, "goal": asdict(goal), "effort": effort, "seed": seed})

    def kept(self, layers: int) -> list[int]:
        """Return the layers that stay: all."""
        return list(range(layers))

    def config(self, checkpoint: "Checkpoint") -> dict[str, Any]:
        """Return the config of the output: the same."""
        return dict(checkpoint.config)

    def shape(self, checkpoint: "Checkpoint", name: str) -> tuple[int, ...]:
        """Return the shape of a layer's tensor in the output: the same."""
        return checkpoint.tensors[name].shape

    def method(self, checkpoint: "Checkpoint", source: CheckpointLayers) -> "MaskMethod":
        """Return what changes the blocks."""
        return MaskMethod(checkpoint, source, self.prune_block)

    def layer_cuts(self, checkpoint: "Checkpoint", told: Sequence[tuple[int, Mapping[str, Any]]]) -> list[LayerCut]:
        """Return the cut layer by layer."""
        sizes = checkpoint.architecture.dimensions(checkpoint.config)
        return [LayerCut.masked(i, sizes, t["zeros"] / t["weights"], t["stream_error"]) for i, t in told]

    def removed_share(self, told: Sequence[tuple[int, Mapping[str, Any]]]) -> float:
        """Return the share of the linear weights that is zero."""
        return sum(t["zeros"] for _, t in told) / sum(t["weights"] for _, t in told)


class MaskMethod:
    """A mask method on every layer, in float32."""

    stored = False

    def __init__(self, checkpoint: "Checkpoint", source: CheckpointLayers, prune_block: BlockMethod) -> None:
        self.kept = range(source.layers)
        self._checkpoint = checkpoint
        self._source = source
        self._prune_block = prune_block

    def change(self, step: Step, told: Sequence[tuple[int, Mapping[str, Any]]]) -> Change:
        """Run the method on the block; see :class:`~.drivers.LayerMethod`."""
        for _ in step.dense_pass():
            pass
        block = step.loaded()
        architecture = self._source.architecture
        matrices = linear_modules(block, architecture)
        work = BlockWork(
            index=step.layer,
            block=block,
            matrices=matrices,
            transposed=architecture.transposed,
            # What the model is measured on stays out of sight: no method may choose by it.
            streams=StreamPart(step.streams, range(step.fitted)),
            dense_streams=StreamPart(step.dense_streams, range(step.fitted)),
            dense_outputs=StreamPart(step.dense_outputs, range(step.fitted)),
            calls=step.calls()[: step.fitted],
            valid=[batch.valid for batch in step.batches[: step.fitted]],
            fitted=step.fitted,
            held_back=batches_to_hold_back(step.fitted),
        )
        self._prune_block(work)
        prefix = architecture.layer_prefix.format(step.layer)
        tensors: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, value in block.state_dict().items():
                tensors[prefix + name] = value.to(self._checkpoint.dtype_of(prefix + name))
                value.copy_(tensors[prefix + name])  # what is stored is what runs
            step.pruned_pass(block)
        weights: list[Any] = [module.weight for module in matrices.values()]
        return Change(
            tensors,
            {
                "zeros": sum(int((weight == 0).sum()) for weight in weights),
                "weights": sum(weight.numel() for weight in weights),
                "stream_error": step.error(),
            },
        )
