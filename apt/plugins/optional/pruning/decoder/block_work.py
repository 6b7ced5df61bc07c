"""One decoder block in work: what a method that changes blocks one after another is given.

A driver walks through the decoder and makes one of these for each block, from a model in memory or from a checkpoint
that is read layer by layer. The method changes ``block`` in place; the driver then runs it to get the stream for the
next one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn


@dataclass(frozen=True)
class BlockWork:
    """A block with its text. All streams are float32 [rows, window, hidden], one tensor for each batch.

    :param index: of the block in the dense model.
    :param block: the decoder layer with dense float32 weights, to be changed in place.
    :param matrices: role (``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``, or the fused ones) → its linear
        module, in the order in which the forward pass reaches them.
    :param transposed: the modules store [in, out] (GPT-2's Conv1D), not [out, in].
    :param streams: the stream before the block in the model pruned so far.
    :param dense_streams: the same in the dense model.
    :param dense_outputs: the dense model's stream after the block (after the last of the dropped layers that follow).
    :param calls: keyword arguments of the block's forward call, one mapping for each batch.
    :param valid: bool [rows, window], false on padding.
    :param fitted: so many batches are for the method; the others only pass through, to measure, and are not looked at.
    :param held_back: of the fitted batches those that a method does not fit, but chooses by.
    """

    index: int
    block: nn.Module
    matrices: Mapping[str, nn.Module]
    transposed: bool
    streams: Sequence[Tensor]
    dense_streams: Sequence[Tensor]
    dense_outputs: Sequence[Tensor]
    calls: Sequence[Mapping[str, Any]]
    valid: Sequence[Tensor]
    fitted: int
    held_back: frozenset[int] = frozenset()

    @property
    def fitting(self) -> list[int]:
        """Batches that weights are fitted on."""
        return [index for index in range(self.fitted) if index not in self.held_back]

    @property
    def choosing(self) -> list[int]:
        """Batches that a method chooses by, between fits."""
        return sorted(self.held_back)


#: One of so many batches is held back, when there are enough of them.
_HELD_BACK_EVERY: Final = 8


def batches_to_hold_back(count: int) -> frozenset[int]:
    """Return which of the fitted batches a method chooses by: one in eight, of fewer than five none."""
    return frozenset(range(_HELD_BACK_EVERY // 2, count, _HELD_BACK_EVERY))


#: What prunes one block in place.
BlockMethod = Callable[[BlockWork], None]
