"""Which layers, heads and ff width to give up: every legal mix that fits is tried, and the measured loss decides.

Each candidate is cut and mended on one part of the calibration rows and its loss measured on the other. Layers are
dropped greedily, each time the one whose absence costs least in the same measure (block influence, the usual proxy,
chooses far worse layers). The winner is fitted again on all rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from apt.console.errors import UnsupportedError
from apt.console.progress import Bar, progress
from apt.plugins.optional.pruning.blocks import Decoder
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.plans import Budget, Sizes, nearest, removed_share, shapes
from apt.plugins.optional.pruning.reconstruct import Calibration, reconstruct
from apt.plugins.optional.pruning.trace import BATCH_TOKENS, Batch

#: So many sizes are measured; where more are legal, those that cut all axes evenly come first.
MAX_SHAPES: Final = 12

#: Sizes that are so much less even than the most even ones are not measured: they took three quarters of one axis, or
#: half of two, and lost by far in every trial.
_MAX_EXCESS: Final = 0.35

#: The search reads at most about so many tokens; the final fit reads them all.
SEARCH_TOKENS: Final = 8192

#: Every so many-th batch only measures during the search.
_EVERY: Final = 4


@dataclass(frozen=True)
class Trial:
    """A plan that was tried.

    :param dropped: layers left out, in the dense numbering.
    :param loss: nats per token on rows that were not fitted.
    """

    sizes: Sizes
    dropped: tuple[int, ...]
    removed_share: float
    loss: float


def legal_shapes(before: Sizes, budget: Budget, goal: Goal, *, heads_divide_hidden: bool) -> list[Sizes]:
    """Return the sizes worth measuring, the most even cuts first.

    :raises UnsupportedError: when no legal size meets the budget of the goal; the message names the nearest.
    """
    found = [s for s in shapes(before, budget, heads_divide_hidden=heads_divide_hidden) if s != before]
    if not found:
        plans = nearest(before, budget, heads_divide_hidden=heads_divide_hidden)
        told = "; ".join(f"{_cost_text(before, s, budget, goal)} ({s.describe()})" for s in plans)
        if budget.limit >= budget.dense and goal.ratio is None:
            raise UnsupportedError(f"the dense model already has no more than {goal}", hint=f"smaller ones: {told}")
        verb = "removes" if goal.ratio is not None else "gives"
        raise UnsupportedError(f"no legal cut {verb} {goal}", hint=f"the nearest: {told}")
    ranked = sorted(found, key=lambda s: _unevenness(before, s))
    limit = _unevenness(before, ranked[0]) + _MAX_EXCESS
    return [s for s in ranked if _unevenness(before, s) <= limit][:MAX_SHAPES]


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


def search(decoder: Decoder, calibration: Calibration, before: Sizes, candidates: Sequence[Sizes]) -> list[Trial]:
    """Measure every candidate; the trials come best first.

    :param calibration: rows that are fitted, and rows held back to measure on.
    """
    drops = _Drops(decoder, calibration, before)
    trials = []
    with progress("searching", len(candidates), "plans") as bar:
        for sizes in candidates:
            trials.append(_best_trial(decoder, calibration, before, sizes, drops, bar))
    return sorted(trials, key=lambda trial: trial.loss)


def _best_trial(
    decoder: Decoder, calibration: Calibration, before: Sizes, sizes: Sizes, drops: "_Drops", bar: Bar
) -> Trial:
    dropped = drops.of(before.layers - sizes.layers)
    result = reconstruct(decoder, calibration, before, sizes, dropped)
    bar.advance()
    return Trial(sizes, dropped, removed_share(before, sizes), result.loss)


class _Drops:
    """Layers to drop, found greedily and remembered."""

    def __init__(self, decoder: Decoder, calibration: Calibration, before: Sizes) -> None:
        self._decoder = decoder
        self._calibration = calibration
        self._before = before
        self._order: list[int] = []

    def of(self, count: int) -> tuple[int, ...]:
        """Return the best ``count`` layers to drop."""
        while len(self._order) < count:
            self._order.append(self._next())
        return tuple(sorted(self._order[:count]))

    def _next(self) -> int:
        """The layer whose removal, mended, costs least on top of those already gone."""
        left = [i for i in range(self._before.layers) if i not in self._order]
        after = replace(self._before, layers=len(left) - 1)
        losses = {
            layer: reconstruct(self._decoder, self._calibration, self._before, after, [*self._order, layer]).loss
            for layer in left
        }
        return min(losses, key=lambda layer: (losses[layer] if math.isfinite(losses[layer]) else math.inf, layer))


def searching_part(batches: Sequence[Batch]) -> Calibration:
    """Return the batches that the search works on: some, evenly spread, a quarter of them held back to measure."""
    count = max(2, SEARCH_TOKENS // BATCH_TOKENS)
    some = list(batches) if len(batches) <= count else [batches[i * len(batches) // count] for i in range(count)]
    if len(some) == 1:
        return Calibration(some)
    held_back = some[_EVERY - 1 :: _EVERY] or some[-1:]
    return Calibration([b for b in some if not any(b is h for h in held_back)], held_back)
