"""Reconstruct: masks with everything that is left fitted to the dense model again, block by block, without training."""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apt.plugins.optional.pruning.contract import Effort, PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork, batches_to_hold_back
from apt.plugins.optional.pruning.decoder.leastsquares import solvable
from apt.plugins.optional.pruning.masks.driver import Feed, Walked, feed, walk
from apt.plugins.optional.pruning.masks.gradual import is_affordable, prune_gradually
from apt.plugins.optional.pruning.masks.pattern import Wanted
from apt.plugins.optional.pruning.masks.refit import refit_block
from apt.plugins.optional.pruning.masks.sequential import obs_mask, prune_sequentially
from apt.plugins.optional.pruning.strategies.masked import (
    BlockStrategy,
    mean_perplexity,
    outcome,
    wanted_of,
    zeros_by_layer,
)
from apt.plugins.optional.pruning.strategies.wanda import WandaStrategy

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows


#: Efforts that are weighed against one another, the cheaper ones first.
_EFFORTS: Final[tuple[Effort, ...]] = ("fast", "full")


class ReconstructStrategy(BlockStrategy):
    """The methods of this project, by effort.

    - ``light``: Wanda's mask, nothing updated.
    - ``fast``: matrix after matrix, the mask by Optimal Brain Surgeon on the pruned model's inputs, then least squares
      on the support against what the dense model does there, with a ridge that is chosen on calibration rows held
      back. Wide matrices are chosen by one SparseGPT visit and descended by conjugate gradients.
    - ``full``: block after block, masks in stages by the rise of the block's output error, the whole block refitted
      after each; wide blocks: the fast method and one refit. A block's refit is taken back when the error on the
      rows held back rises, and the fast result is returned where it does better on them.
    """

    name = "reconstruct"
    plan = "weights set to zero, the others fitted to the dense model again"

    def block_method(self, wanted: Wanted, effort: Effort) -> BlockMethod:
        """Return the method of an effort."""
        if effort == "light":
            return WandaStrategy().block_method(wanted, effort)

        def fast(work: BlockWork) -> None:
            prune_sequentially(work, lambda _role, best, matrix: obs_mask(best, matrix, wanted))

        def full(work: BlockWork) -> None:
            if is_affordable(work):
                prune_gradually(work, wanted)
            else:
                fast(work)
                refit_block(work)

        return full if effort == "full" else fast

    def prune(self, task: Task) -> Pruned:
        """Prune, hold some rows back to measure on, and with full effort return what does best on them."""
        task.architecture.check_uniform("pruning")
        wanted = wanted_of(task.goal, self.name)
        if task.effort == "light":
            return super().prune(task)
        feeds = feed(task.model, task.architecture, task.rows)
        held_back = batches_to_hold_back(len(feeds))
        if not held_back:  # too little text to choose by
            return super().prune(task)
        tried: list[_Candidate] = []
        with solvable():
            for effort in _EFFORTS[: _EFFORTS.index(task.effort) + 1]:
                method = self.block_method(wanted, effort)
                walked = walk(
                    task.model, task.architecture, feeds, method, held_back=held_back, what=f"pruning ({effort})"
                )
                tried.insert(0, _Candidate.of(task, effort, walked, _rows_of(task, feeds, held_back)))
        # A perplexity that is not a number comes last; of equals the more thorough comes first.
        ranked = sorted(tried, key=lambda c: math.inf if math.isnan(c.held_back) else c.held_back)
        best = ranked[0]
        fitted = _rows_of(task, feeds, set(range(len(feeds))) - held_back)
        return outcome(
            task, best.walked.model, self.plan, best.walked.errors,
            trials=tuple(PlanTrial(c.label, (), c.share, c.held_back, c is best) for c in ranked),
            fitted_perplexity=mean_perplexity(best.walked.model, fitted), held_back_perplexity=best.held_back,
        )  # fmt: skip


def _rows_of(task: Task, feeds: Sequence[Feed], some: Set[int]) -> "Rows":
    """Return the rows of some feeds."""
    return task.rows.take(sorted(row for index in some for row in feeds[index].order.tolist()))


@dataclass(frozen=True)
class _Candidate:
    """A model that was made on the fitted rows, and its perplexity on those held back."""

    label: str
    walked: Walked
    share: float
    held_back: float

    @classmethod
    def of(cls, task: Task, effort: Effort, walked: Walked, held_back: "Rows") -> "_Candidate":
        label = {"full": "blocks refitted in stages", "fast": "least squares matrix by matrix"}[effort]
        zeros, total = (sum(part) for part in zip(*zeros_by_layer(walked.model, task.architecture), strict=True))
        return cls(label, walked, zeros / total, mean_perplexity(walked.model, held_back))
