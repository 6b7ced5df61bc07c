"""Distillation of relations: how the rows of a micro-batch lie to one another (RKD, Park et al., arXiv 1904.05068).

A row is the mean of its hidden states over its counted tokens. Distances are divided by their mean over the
micro-batch, therefore widths and scales may differ and no projection is needed. Relations are compared within a
micro-batch: two micro-batches of four rows have other pairs than one of eight.
"""

from collections.abc import Mapping
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from apt.training.contract import Batch, counted
from apt.training.forward import Body

Kind = Literal["distance", "angle", "cosine"]

#: Rows that a micro-batch has to have to say anything: a lone distance over the mean of all is 1 for every model.
FEWEST_ROWS: Final[Mapping[Kind, int]] = {"distance": 3, "cosine": 2, "angle": 3}


class RelationSettings(BaseModel):
    """Which relation of the rows is compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, gt=0.0, description="Of the relations' distance within the term.")
    kind: Kind = Field(
        default="distance",
        description="Of every two rows the distance or the cosine, or of every three the angle; a micro-batch needs "
        "three rows, for cosine two.",
    )


def relation_loss(kind: Kind, ours: Body, theirs: Body, batch: Batch) -> Tensor:
    """Return the mean Huber loss between the relations of the student's rows and the teacher's; 0 for too few rows."""
    rows = counted(batch["labels"]).nonzero()[:, 0]
    mine = pooled(ours.last, rows)
    with torch.no_grad():
        wanted = relations(kind, pooled(theirs.last, rows).to(mine.dtype))
    found = relations(kind, mine)
    # A sum of nothing keeps the graph whole where there are too few rows.
    return smooth_l1_loss(found, wanted) if found.numel() else mine.sum() * 0.0


def pooled(states: Tensor, rows: Tensor) -> Tensor:
    """Mean of ``[tokens, hidden]`` over the tokens of each row that has any, ``[rows, hidden]``, in at least fp32.

    :param rows: ``[tokens]``, the row that each token is of, ascending.
    """
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    _, place, sizes = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
    sums = wide.new_zeros(len(sizes), wide.shape[1]).index_add(0, place, wide)
    return sums / sizes[:, None].to(wide.dtype)


def relations(kind: Kind, points: Tensor) -> Tensor:
    """Return the relations of ``[rows, width]``: one number for each pair, or for each angle, in a fixed order."""
    n = len(points)
    upper = torch.triu_indices(n, n, offset=1, device=points.device)
    if kind == "cosine":
        unit = normalize(points, dim=-1)
        return (unit @ unit.T)[upper[0], upper[1]]
    if kind == "distance":
        distances = (points[upper[0]] - points[upper[1]]).square().sum(-1).clamp_min(1e-12).sqrt()
        return distances / distances.mean().clamp_min(1e-12) if len(distances) else distances
    # The angle at row j between rows i and k.
    edges = normalize(points[None] - points[:, None], dim=-1)
    cosines = edges @ edges.transpose(1, 2)
    corner = torch.arange(n, device=points.device)[:, None]
    apart = (upper[0][None] != corner) & (upper[1][None] != corner)
    return cosines[:, upper[0], upper[1]][apart]
