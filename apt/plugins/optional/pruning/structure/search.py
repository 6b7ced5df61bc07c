"""Which layers, heads, ff and hidden width to give up: the best legal mixes are tried, and the measured loss decides.

The sensitivity table (:mod:`.sensitivity`) tells which of the mixes are worth trying. Each of those is cut and mended
on one part of the calibration rows and its loss measured on the other. Layers are dropped greedily, each time the one
whose absence costs least in the same measure (block influence, the usual proxy, chooses far worse layers). The winner
is fitted again on all rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from apt.console.errors import UnsupportedError
from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.sizes import Sizes, removed_share
from apt.plugins.optional.pruning.decoder.trace import BATCH_TOKENS, Batch
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.structure.hidden import Widths
from apt.plugins.optional.pruning.structure.plans import Budget, nearest, shapes
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, reconstruct
from apt.plugins.optional.pruning.structure.sensitivity import Sensitivity, Table

#: So many sizes of one hidden size come into question; where more are legal, those that cut all axes evenly come first.
MAX_SHAPES: Final = 24

#: So many of them are cut and measured whole.
MEASURED: Final = 5

#: Sizes that are so much less even than the most even ones are not measured: they took three quarters of one axis, or
#: half of two, and lost by far in every trial.
_MAX_EXCESS: Final = 0.35

#: Of plans that are all faster than asked, those count that take at least this share of the slowest one's time.
_AS_SLOW: Final = 0.98

#: The search reads at most about so many tokens; the final fit reads them all.
SEARCH_TOKENS: Final = 8192

#: Every so many-th batch only measures during the search.
_EVERY: Final = 4


@dataclass(frozen=True)
class Trial:
    """A plan that was tried.

    :param dropped: layers left out, in the dense numbering.
    :param loss: nats per token on rows that were not fitted.
    :param fitted_loss: on those that were; ``None`` when not measured.
    """

    sizes: Sizes
    dropped: tuple[int, ...]
    removed_share: float
    loss: float
    fitted_loss: float | None = None


def legal_shapes(
    before: Sizes, budget: Budget, goal: Goal, *, heads_divide_hidden: bool, narrower: Sequence[int] = ()
) -> list[Sizes]:
    """Return the sizes worth measuring, of every hidden size the most even cuts first.

    :param narrower: hidden sizes that come into question beside the dense one.

    :raises UnsupportedError: when no legal size meets the budget of the goal; the message names the nearest.
    """
    found = [
        s for s in shapes(before, budget, heads_divide_hidden=heads_divide_hidden, narrower=narrower) if s != before
    ]
    if not found and goal.speed is not None:
        found = _fast_enough(before, budget, heads_divide_hidden)
    if not found:
        plans = nearest(before, budget, heads_divide_hidden=heads_divide_hidden, narrower=narrower)
        told = "; ".join(f"{_cost_text(before, s, budget, goal)} ({s.describe()})" for s in plans)
        if budget.limit >= budget.dense and goal.ratio is None:
            raise UnsupportedError(f"the dense model already has no more than {goal}", hint=f"smaller ones: {told}")
        verb = "removes" if goal.ratio is not None else "gives"
        raise UnsupportedError(f"no legal cut {verb} {goal}", hint=f"the nearest: {told}")
    result = []
    for hidden in (before.hidden, *narrower):
        ranked = sorted((s for s in found if s.hidden == hidden), key=lambda s: _unevenness(before, s))
        limit = _unevenness(before, ranked[0]) + _MAX_EXCESS if ranked else 0.0
        result += [s for s in ranked if _unevenness(before, s) <= limit][:MAX_SHAPES]
    return result


def _fast_enough(before: Sizes, budget: Budget, heads_divide_hidden: bool) -> list[Sizes]:
    """Return the slowest plans that are fast enough: of a small model, steps from one size to the next are wide."""
    found = shapes(before, replace(budget, floor=0.0), heads_divide_hidden=heads_divide_hidden)
    slowest = max((budget.cost(s) for s in found if s != before), default=0.0)
    return [s for s in found if s != before and budget.cost(s) >= _AS_SLOW * slowest]


def _cost_text(before: Sizes, sizes: Sizes, budget: Budget, goal: Goal) -> str:
    """What a plan gives, in the unit of the goal."""
    if goal.parameters is not None:
        return f"{budget.cost(sizes):,.0f} parameters"
    if goal.size_bytes is not None:
        return f"{budget.cost(sizes):,.0f} bytes"
    if goal.speed is not None:
        return f"{budget.dense / max(budget.cost(sizes), 1e-12):.2f} times the speed"
    return f"{removed_share(before, sizes):.1%}"


def _unevenness(before: Sizes, after: Sizes) -> float:
    """Sum of squares of what each axis loses: plans that take everything from one axis come last."""
    axes = ("layers", "kv_groups", "heads_per_group", "ff")
    return sum((1.0 - getattr(after, axis) / getattr(before, axis)) ** 2 for axis in axes)


def search(
    widths: Widths, candidates: Sequence[Sizes], table: Table | None = None, *, measured: int = MEASURED
) -> list[Trial]:
    """Measure the candidates that the sensitivity table thinks best; the trials come best first.

    :param widths: the dense decoder with rows that are fitted, and rows held back to measure on.
    :param table: of this model and these rows; what is measured is kept there.
    :param measured: so many candidates are measured whole.
    """
    table = Table(None) if table is None else table
    before = widths.dense.sizes
    sensitivity = Sensitivity(widths, candidates, table)
    if len(candidates) > measured:
        sensitivity.measure(before.layers - min(sizes.layers for sizes in candidates))
        candidates = sorted(candidates, key=sensitivity.predicted)[:measured]
    trials = []
    with progress("searching", len(candidates), "plans") as bar:
        # Those of one width together: only one narrow decoder is kept.
        for sizes in sorted(candidates, key=lambda sizes: -sizes.hidden):
            dropped = sensitivity.dropped(before.layers - sizes.layers)
            loss = table.loss(plan_name(sizes, dropped), partial(_loss, widths, sizes, dropped))
            trials.append(Trial(sizes, dropped, removed_share(before, sizes), loss))
            bar.advance()
    return sorted(trials, key=lambda trial: trial.loss if math.isfinite(trial.loss) else math.inf)


def _loss(widths: Widths, sizes: Sizes, dropped: Sequence[int]) -> float:
    at = widths.at(sizes.hidden)
    return reconstruct(at.decoder, at.calibration, at.sizes, sizes, dropped).loss


def plan_name(sizes: Sizes, dropped: Sequence[int]) -> str:
    """Return the name under which the loss of a whole plan is kept."""
    return f"plan:{sizes.describe()}:without {'+'.join(map(str, dropped))}"


def searching_part(batches: Sequence[Batch]) -> Calibration:
    """Return the batches that the search works on: some, evenly spread, a quarter of them held back to measure."""
    count = max(2, SEARCH_TOKENS // BATCH_TOKENS)
    some = list(batches) if len(batches) <= count else [batches[i * len(batches) // count] for i in range(count)]
    if len(some) == 1:
        return Calibration(some)
    held_back = some[_EVERY - 1 :: _EVERY] or some[-1:]
    return Calibration([b for b in some if not any(b is h for h in held_back)], held_back)
