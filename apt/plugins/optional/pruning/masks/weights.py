"""The decoder's linear weights by name, and which of them are smallest: masks that hold while a model is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from apt.checkpoint.architecture import Architecture
from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.pattern import keep_of_groups, keep_of_matrix

#: Whether the smallest weights of each matrix go, or those of all matrices together.
Scope = Literal["matrix", "global"]


@dataclass(frozen=True)
class LinearWeight:
    """A linear matrix of the decoder.

    :param transposed: it is stored [inputs, outputs] (GPT-2's Conv1D).
    """

    name: str
    layer: int
    weight: Tensor
    transposed: bool

    def turned(self, values: Tensor) -> Tensor:
        """Return values of the matrix's shape as [outputs, inputs], or such values as the matrix stores them."""
        return values.T if self.transposed else values


def linear_weights(model: Any, architecture: Architecture) -> list[LinearWeight]:
    """Return the decoder's linear matrices in the order of the model."""
    found = []
    for name, weight in model.named_parameters():
        layer = architecture.layer_of(name)
        if layer is None or weight.ndim != 2 or architecture.component_of(name) not in ("attention", "mlp"):
            continue
        found.append(LinearWeight(name, layer, weight, architecture.transposed))
    return found


@torch.no_grad()
def smallest(
    matrices: Sequence[LinearWeight], share: float, *, pattern: Pattern | None, scope: Scope
) -> dict[str, Tensor]:
    """Return the weights of least magnitude by matrix: bool, true where one goes; of equals the first.

    Weights that are zero already are among them, as long as they are not more than ``share``.

    :param pattern: only weights that it does not keep may go; at its own share all of them do.
    """
    scores = {m.name: _scores(m, pattern) for m in matrices}
    if scope == "global" and pattern is None:
        gone = ~keep_of_matrix(torch.cat([s.flatten() for s in scores.values()]), share)
        parts = torch.split(gone, [s.numel() for s in scores.values()])
        return {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}
    return {name: ~keep_of_matrix(s, share) for name, s in scores.items()}


def _scores(matrix: LinearWeight, pattern: Pattern | None) -> Tensor:
    """Magnitudes; infinite for what the pattern keeps."""
    scores = matrix.weight.detach().abs().float()
    if pattern is None:
        return scores
    kept = matrix.turned(keep_of_groups(matrix.turned(scores), pattern))
    return scores.masked_fill(kept, torch.inf)


@torch.no_grad()
def apply(matrices: Sequence[LinearWeight], dead: Mapping[str, Tensor]) -> None:
    """Set the weights of a mask to zero."""
    for matrix in matrices:
        matrix.weight.masked_fill_(dead[matrix.name], 0.0)
