"""Reconstruct: masks with everything that is left fitted to the dense model again, block by block, without training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.leastsquares import RIDGE
from apt.plugins.optional.pruning.masks.driver import Walked, feed, walk
from apt.plugins.optional.pruning.masks.gradual import is_affordable, prune_gradually
from apt.plugins.optional.pruning.masks.pattern import Wanted
from apt.plugins.optional.pruning.masks.refit import refit_block
from apt.plugins.optional.pruning.masks.sequential import obs_mask, prune_sequentially
from apt.plugins.optional.pruning.strategies.base import Effort, PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.strategies.masked import (
    BlockMaskStrategy,
    mean_perplexity,
    outcome,
    solvable,
    split,
    wanted_of,
    zeros_of,
)
from apt.plugins.optional.pruning.strategies.wanda import WandaStrategy
from apt.plugins.optional.pruning.streamed_masks import MaskPlan

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.texts import Rows

#: One of so many calibration rows is held back to measure on.
HELD_BACK: Final = 8

#: Ridges that are weighed on the rows held back.
RIDGES: Final = (RIDGE, 10.0 * RIDGE)


class ReconstructStrategy(BlockMaskStrategy):
    """The methods of this project, by effort.

    - ``light``: Wanda's mask, nothing updated.
    - ``fast``: matrix after matrix, the mask by Optimal Brain Surgeon on the pruned model's inputs, then least squares
      on the support against what the dense model does there. Wide matrices are chosen by one SparseGPT visit and
      descended by conjugate gradients. The ridge is chosen on calibration rows that are held back.
    - ``full``: block after block, masks in stages by the rise of the block's output error, the whole block refitted
      after each; wide blocks: the fast method and one refit. A block's refit is taken back when the error on the
      rows held back rises, and the fast result is returned where it does better on them.

    Layer by layer from files no models are weighed against one another: ``fast`` takes the smaller ridge, and ``full``
    is refused.
    """

    name = "reconstruct"
    plan = "weights set to zero, the others fitted to the dense model again"

    def block_method(self, wanted: Wanted, effort: Effort, ridge: float = RIDGE) -> BlockMethod:
        """Return the method of an effort."""
        if effort == "light":
            return WandaStrategy().block_method(wanted, effort)

        def fast(work: BlockWork) -> None:
            prune_sequentially(work, lambda _role, best, matrix: obs_mask(best, matrix, wanted), ridge=ridge)

        def full(work: BlockWork) -> None:
            if is_affordable(work):
                prune_gradually(work, wanted)
            else:
                fast(work)
                refit_block(work)

        return full if effort == "full" else fast

    def stream_plan(
        self, checkpoint: "Checkpoint", goal: Goal, *, effort: Effort, seed: int, settings: Mapping[str, Any]
    ) -> MaskPlan:
        """Return the plan layer by layer; see :class:`~.base.StreamingStrategy`."""
        if effort == "full":
            raise UnsupportedError(
                "reconstruct with effort full weighs whole models, which does not go layer by layer",
                hint="--effort fast or light",
            )
        return super().stream_plan(checkpoint, goal, effort=effort, seed=seed, settings=settings)

    def prune(self, task: Task) -> Pruned:
        """Prune, and choose between ridges and methods on rows that were held back."""
        task.architecture.check_uniform("pruning")
        wanted = wanted_of(task.goal, self.name)
        if task.effort == "light":
            return super().prune(task)
        rows, kept_back = split(task.rows, HELD_BACK)
        with solvable():
            if kept_back is None:
                feeds = feed(task.model, task.architecture, rows)
                walked = walk(task.model, task.architecture, feeds, self.block_method(wanted, task.effort))
                return outcome(task, walked.model, self.plan, walked.errors)
            choice = _Choice(task, rows, kept_back)
            ridge = choice.of_ridges(lambda ridge: self.block_method(wanted, "fast", ridge))
            method = self.block_method(wanted, task.effort, ridge)
            if task.effort == "full":
                choice.weigh("blocks refitted", method)
            best = choice.best
            trials = tuple(PlanTrial(c.label, (), c.share, c.perplexity, c is best) for c in choice.ranked)
            told: dict[str, Any] = {"trials": trials, "held_back_perplexity": best.perplexity}
            if task.effort == "fast":  # cheap enough to be done again with all rows
                feeds = feed(task.model, task.architecture, task.rows)
                walked = walk(task.model, task.architecture, feeds, method)
                return outcome(
                    task, walked.model, self.plan, walked.errors,
                    fitted_perplexity=mean_perplexity(walked.model, task.rows), **told,
                )  # fmt: skip
            fit = mean_perplexity(best.walked.model, rows)
            return outcome(task, best.walked.model, self.plan, best.walked.errors, fitted_perplexity=fit, **told)


@dataclass(frozen=True)
class _Candidate:
    """A model that was made on the fitted rows, and its perplexity on those held back."""

    label: str
    walked: Walked
    share: float
    perplexity: float


class _Choice:
    """Weighs methods: each is fitted on some rows and measured on others."""

    def __init__(self, task: Task, rows: "Rows", kept_back: "Rows") -> None:
        self._task = task
        self._kept_back = kept_back
        self._fitted = feed(task.model, task.architecture, rows)
        self._held_back = feed(task.model, task.architecture, kept_back)
        self.ranked: list[_Candidate] = []

    @property
    def best(self) -> _Candidate:
        """The candidate of least perplexity on the rows held back."""
        return self.ranked[0]

    def weigh(self, label: str, method: BlockMethod) -> float:
        """Make and measure a candidate; of the models only the best one's is kept."""
        task = self._task
        walked = walk(task.model, task.architecture, self._fitted, method, self._held_back)
        perplexity = mean_perplexity(walked.model, self._kept_back)
        zeros, total = (sum(part) for part in zip(*zeros_of(walked.model, task.architecture), strict=True))
        self.ranked.append(_Candidate(label, walked, zeros / total, perplexity))
        # A perplexity that is not a number comes last.
        self.ranked.sort(key=lambda c: c.perplexity if math.isfinite(c.perplexity) else math.inf)
        for place, candidate in enumerate(self.ranked[1:], 1):
            self.ranked[place] = replace(candidate, walked=replace(candidate.walked, model=None))
        return perplexity

    def of_ridges(self, method: Callable[[float], BlockMethod]) -> float:
        """Return the better ridge."""
        found = {ridge: self.weigh(f"least squares, ridge {ridge:g}", method(ridge)) for ridge in RIDGES}
        return min(RIDGES, key=lambda ridge: found[ridge] if math.isfinite(found[ridge]) else math.inf)
