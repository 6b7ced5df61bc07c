"""Unstructured: every matrix gives what its loss can spare, and what stays is solved again."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from torch import Tensor

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.contract import Effort, PlanPreview, Pruned, Task
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.decoder.layers import linear_modules
from apt.plugins.optional.pruning.decoder.leastsquares import solvable
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.masks.budgets import removal_counts
from apt.plugins.optional.pruning.masks.driver import Feed, feed, layers_of, walk
from apt.plugins.optional.pruning.masks.fisher import Passed, RowBlocks, sweep
from apt.plugins.optional.pruning.masks.linear import weight_of
from apt.plugins.optional.pruning.masks.obs import removal_trace
from apt.plugins.optional.pruning.masks.refit import DAMP, refit_block
from apt.plugins.optional.pruning.masks.sequential import obs_mask, prune_in_one_pass, prune_sequentially
from apt.plugins.optional.pruning.masks.sparsegpt import sparsegpt
from apt.plugins.optional.pruning.strategies.masked import MaskStrategy, outcome, wanted_of

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint

#: Share that each matrix is to lose, by layer and role.
Budgets = Mapping[tuple[int, str], float]

#: No matrix loses more than this: a trace says little about a matrix that is all but gone.
_MOST: Final = 0.95


class UnstructuredStrategy(MaskStrategy):
    """Budgets by one threshold on the measured rise of the loss, then masks and least squares within them.

    The rise is that of Optimal Brain Surgeon on the Fisher information of each output row (Kurtic et al., 2022), summed
    token by token on the dense model; all rows of all matrices are cut at the same rise. ``light`` prices each
    weight alone and visits a matrix once, as SparseGPT does; ``fast`` prunes within the budgets as ``reconstruct``
    does, ``full`` refits every block besides.
    """

    name = "unstructured"
    plan = "each matrix gives what the loss can spare, the others are fitted again"

    def preview(self, checkpoint: "Checkpoint", goal: Goal) -> list[PlanPreview]:
        """Return the one plan; see :class:`~.contract.Strategy`."""
        _ratio_of(goal)
        return super().preview(checkpoint, goal)

    def prune(self, task: Task) -> Pruned:
        """Measure, share out, and prune block by block."""
        task.architecture.check_uniform("pruning")
        ratio = _ratio_of(task.goal)
        feeds = feed(task.model, task.architecture, task.rows)
        with solvable():
            method = _method(budgets(task, feeds, ratio), task.effort)
            walked = walk(task.model, task.architecture, feeds, method)
        return outcome(task, walked.model, self.plan, walked.errors)


def _ratio_of(goal: Goal) -> float:
    wanted = wanted_of(goal, UnstructuredStrategy.name)
    if isinstance(wanted, Pattern):
        raise UnsupportedError(
            f"the strategy unstructured cannot give {goal}: a pattern leaves no budgets to share out",
            hint="it takes --ratio; magnitude, wanda, sparsegpt, taylor and reconstruct take patterns",
        )
    return wanted


def budgets(task: Task, feeds: Sequence[Feed], ratio: float) -> Budgets:
    """Return what each matrix is to lose, so that the decoder loses ``ratio`` of its linear weights."""
    transposed = task.architecture.transposed
    layers = layers_of(task.model, task.architecture)
    sizes: dict[tuple[int, str], int] = {}
    rises: dict[tuple[int, str], Tensor] = {}

    def visit(index: int, passed: Sequence[Mapping[str, Passed]]) -> None:
        for role, module in linear_modules(layers[index], task.architecture).items():
            weight = weight_of(module, transposed)
            most = math.ceil(max(_MOST, ratio) * weight.shape[1])
            blocks = RowBlocks(*weight.shape)
            for what, f in zip(passed, feeds, strict=True):
                blocks.add(what[role].inputs[f.valid], what[role].gradients[f.valid])
            sizes[index, role] = weight.numel()
            rises[index, role] = _rises(weight, blocks, most, exact=task.effort != "light")

    sweep(task.model, task.architecture, feeds, visit)
    counts = removal_counts(rises, round(ratio * sum(sizes.values())))
    return {key: int(count.sum()) / sizes[key] for key, count in counts.items()}


def _rises(weight: Tensor, fisher: RowBlocks, steps: int, *, exact: bool) -> Tensor:
    """Rise of the loss with each of the first removals of every row, [outputs, steps].

    :param exact: by a trace of Optimal Brain Surgeon, where the matrix is narrow; else each weight alone.
    """
    blocks = fisher.blocks(DAMP)
    if exact and fisher.own:
        return removal_trace(weight, blocks, steps=steps).rises
    alone = weight.to(blocks).square() * blocks.diagonal(dim1=-2, dim2=-1) * fisher.row_factors()[:, None]
    return alone.sort(dim=1).values[:, :steps]


def _method(shares: Budgets, effort: Effort) -> BlockMethod:
    """Return what prunes a block within its budgets."""

    def light(work: BlockWork) -> None:
        prune_in_one_pass(work, lambda role, weight, gram: sparsegpt(weight, gram, shares[work.index, role]))

    def fast(work: BlockWork) -> None:
        prune_sequentially(work, lambda role, best, matrix: obs_mask(best, matrix, shares[work.index, role]))

    def full(work: BlockWork) -> None:
        fast(work)
        refit_block(work)

    return {"light": light, "fast": fast, "full": full}[effort]
