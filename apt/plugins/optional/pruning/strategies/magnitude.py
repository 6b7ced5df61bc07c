"""Unstructured magnitude pruning: the smallest weights of every matrix become zero. Nothing gets smaller or faster."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apt.checkpoint.architecture import Architecture
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.strategies.base import LayerCut, PlanPreview, Pruned, Task

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint

_PLAN = "the smallest weights of each matrix set to zero"


class MagnitudeStrategy:
    """Zeroes the same share of every linear matrix of the decoder, by absolute value (Han et al., 2015)."""

    def preview(self, checkpoint: "Checkpoint", goal: Goal) -> list[PlanPreview]:
        """Return the one plan: sizes stay; see :class:`~.base.Strategy`."""
        checkpoint.architecture.check_uniform("pruning")
        return [PlanPreview(_PLAN, _ratio(goal), checkpoint.parameters, checkpoint.size_bytes)]

    def prune(self, task: Task) -> Pruned:
        """Zero the weights of a copy; see :class:`~.base.Strategy`."""
        task.architecture.check_uniform("pruning")
        ratio = _ratio(task.goal)
        model = copy.deepcopy(task.model)
        zeros: dict[int, int] = {}
        totals: dict[int, int] = {}
        for layer, weight in linear_weights(model, task.architecture):
            count = round(ratio * weight.numel())
            _zero_smallest(weight, count)
            zeros[layer] = zeros.get(layer, 0) + count
            totals[layer] = totals.get(layer, 0) + weight.numel()
        share = sum(zeros.values()) / max(1, sum(totals.values()))
        dimensions = task.architecture.dimensions(model.config.to_dict())
        sizes = (dimensions.heads,) * 2 + (dimensions.kv_heads,) * 2 + (dimensions.ff,) * 2
        cuts = tuple(LayerCut(i, i, *sizes, removed_share=zeros[i] / totals[i]) for i in sorted(totals))
        return Pruned(model, share, smaller=False, plan=_PLAN, layers=cuts)


def _ratio(goal: Goal) -> float:
    if goal.ratio is None:
        raise UnsupportedError(f"the strategy magnitude cannot give {goal}", hint="it takes --ratio")
    return goal.ratio


def linear_weights(model: Any, architecture: Architecture) -> list[tuple[int, Tensor]]:
    """Return the decoder's linear matrices as ``(layer, weight)``, in the order of the model."""
    found = []
    for name, parameter in model.named_parameters():
        layer = architecture.layer_of(name)
        if layer is not None and parameter.ndim == 2 and architecture.component_of(name) in ("attention", "mlp"):
            found.append((layer, parameter))
    return found


@torch.no_grad()
def _zero_smallest(weight: Tensor, count: int) -> None:
    """Set the ``count`` entries of least magnitude to zero; of equals the first go."""
    order = weight.abs().flatten().argsort(stable=True)[:count]
    weight.view(-1)[order] = 0.0
