"""What a loss is: the contract between the runner and whatever is trained.

A loss returns a sum and a weight, never a mean: only the runner knows the global batch, so only it may divide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: Label of a token that is not trained on; the only mask there is.
IGNORED: Final = -100

#: A batch: ``input_ids`` and ``labels``, both ``[rows, window]``; labels are unshifted.
Batch = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that reduces rightly over micro-batches: ``sum`` over ``weight`` items, or a bare sum."""

    sum: "torch.Tensor"
    weight: "torch.Tensor"
    aggregate: Literal["mean", "sum"] = "mean"


class LossOut(NamedTuple):
    """What a loss gives for one micro-batch.

    ``loss_sum`` is the differentiable sum over counted tokens (scalar, fp32 or wider), ``weight`` their number.
    """

    loss_sum: "torch.Tensor"
    weight: "torch.Tensor"
    metrics: dict[str, Metric]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a loss may need beyond the model and the batch.

    :param teacher: a model in evaluation mode whose parameters need no gradient.
    :param shared_vocab: ids below it mean the same to teacher and model; ``None`` when the vocabularies are equal.
    """

    teacher: "PreTrainedModel | None" = None
    shared_vocab: int | None = None


class Loss(Protocol):
    """A training loss; made by its component's target from ``(options, resources)``."""

    #: Names of the resources that it cannot do without.
    needs: frozenset[str]

    def __call__(self, model: Any, batch: Batch, *, rng: "torch.Generator", step: int) -> LossOut:
        """Return the loss of one micro-batch; random choices come from ``rng`` only, so that a resume is exact."""
        ...


def counted(labels: "torch.Tensor") -> "torch.Tensor":
    """Mask ``[rows, window - 1]`` of the positions whose next token is trained on."""
    return labels[:, 1:] != IGNORED


def count(batch: Batch) -> "torch.Tensor":
    """Number of tokens of a batch that are trained on (an int64 scalar)."""
    return counted(batch["labels"]).sum()
