"""The thorough method of one block: masks in stages, the whole block refitted after each.

At each stage every weight's cost is its rise of the *block's* output error by Optimal Brain Surgeon on Gauss-Newton
blocks of that error (:func:`~.refit.sensitivity`), measured at the weights as they are then. The cheapest of all
matrices together go, up to the stage's share; what is left of the rows is solved again on the same model, and the block
is refitted. So a block itself decides which of its matrices can spare most, and no stage strays from what it measured.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from apt.plugins.optional.pruning.decoder.block_work import BlockWork
from apt.plugins.optional.pruning.goals import Pattern
from apt.plugins.optional.pruning.masks.budgets import removal_counts
from apt.plugins.optional.pruning.masks.fisher import RowBlocks, rows_have_blocks
from apt.plugins.optional.pruning.masks.linear import set_weight, weight_of
from apt.plugins.optional.pruning.masks.obs import Trace, removal_trace, solve_support
from apt.plugins.optional.pruning.masks.pattern import Wanted, removals
from apt.plugins.optional.pruning.masks.refit import DAMP, STEPS, Refitted, refit_block, sensitivity

#: Shares of what is to go, stage by stage.
STAGES: Final = (0.5, 0.75, 0.9, 1.0)

#: Steps of the refit after each stage but the last.
STAGE_STEPS: Final = 5


def is_affordable(work: BlockWork) -> bool:
    """Whether all matrices are narrow enough for a Gauss-Newton block of each output row, and for exact traces."""
    shapes = [weight_of(module, work.transposed).shape for module in work.matrices.values()]
    return all(rows_have_blocks(outputs, inputs) for outputs, inputs in shapes)


def prune_gradually(work: BlockWork, wanted: Wanted, *, steps: int = STEPS) -> Refitted:
    """Prune and refit the block in place; the whole block loses exactly what is wanted of it.

    :param wanted: the share of the block's weights, or the pattern of each matrix.
    :param steps: of the last refit.
    """
    alive = {
        role: torch.ones(weight_of(module, work.transposed).shape, dtype=torch.bool)
        for role, module in work.matrices.items()
    }
    total = _asked(wanted, alive)
    for stage in STAGES[:-1]:
        _cut(work, alive, sensitivity(work), round(stage * total), wanted)
        refit_block(work, steps=STAGE_STEPS)
    _cut(work, alive, sensitivity(work), total, wanted)
    return refit_block(work, steps=steps)


def _asked(wanted: Wanted, alive: Mapping[str, Tensor]) -> int:
    """Return how many weights of the block go."""
    if isinstance(wanted, Pattern):
        return sum(removals(wanted, tuple(mask.shape)) for mask in alive.values())
    return round(wanted * sum(mask.numel() for mask in alive.values()))


def _cut(
    work: BlockWork, alive: dict[str, Tensor], curvature: Mapping[str, RowBlocks], total: int, wanted: Wanted
) -> None:
    """Remove until ``total`` weights are gone, and solve the rest of each row; ``alive`` follows."""
    pattern = wanted if isinstance(wanted, Pattern) else None
    weights = {role: weight_of(module, work.transposed).clone() for role, module in work.matrices.items()}
    traces: dict[str, Trace] = {}
    for role, weight in weights.items():
        traces[role] = removal_trace(weight, curvature[role].blocks(DAMP), alive=alive[role], pattern=pattern)
    gone = sum(int((~mask).sum()) for mask in alive.values())
    counts = removal_counts({role: trace.rises for role, trace in traces.items()}, total - gone)
    for role, weight in weights.items():
        keep = traces[role].keep(counts[role], weight.shape[1], alive[role])
        blocks = curvature[role].blocks(DAMP)
        right = torch.einsum("oij,oj->oi", blocks, weight.to(blocks))
        set_weight(work.matrices[role], work.transposed, solve_support(blocks, right, keep).to(weight.dtype))
        alive[role] = keep
