"""Which cuts are legal, and which of them remove what was asked.

A plan is uniform over layers, because stock configs know one size for all. Axes: whole layers, KV groups with their
query heads, query heads within every group, ff channels, and the hidden sizes that the caller names. Sizes that a stock
checkpoint or a kernel would refuse are never proposed.
"""

import bisect
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from apt.checkpoint.architecture.alignment import ALIGNMENTS, alignment
from apt.plugins.optional.pruning.decoder.sizes import Sizes

#: A plan may remove so much more than was asked (share of the linear weights).
TOLERANCE: Final = 0.02

#: Kernels and block-wise quantizers take no interest in multiples below this.
_LIKED: Final = 8

#: Counts as "what was asked" although it is a little less.
SLACK: Final = 0.0025


@dataclass(frozen=True)
class Budget:
    """What the cut model may cost, in one unit: weights, parameters, bytes, or seconds of a decode step.

    :param cost: what sizes cost; it never falls when a size grows.
    :param dense: what the dense model costs.
    :param limit: what the cut model may cost at most.
    :param floor: what costs less has lost more than was asked and does not come into question.
    :param near: where nothing lies between floor and limit, plans that cost at most this are taken.
    """

    cost: Callable[[Sizes], float]
    dense: float
    limit: float
    floor: float
    near: float


def weights_budget(before: Sizes, ratio: float) -> Budget:
    """Return the budget that removes ``ratio`` of the decoder's linear weights, less :data:`SLACK`."""
    dense = before.weights
    return Budget(
        cost=lambda sizes: sizes.weights,
        dense=dense,
        limit=dense * (1.0 - ratio + SLACK),
        floor=dense * (1.0 - ratio - TOLERANCE),
        near=dense * (1.0 - ratio + TOLERANCE),
    )


def cost_budget(cost: Callable[[Sizes], float], before: Sizes, limit: float, tolerance: float = TOLERANCE) -> Budget:
    """Return the budget that costs at most ``limit``, and at most ``tolerance`` of the dense cost less.

    A size that was asked for is a promise, so nothing above it is near enough.
    """
    dense = cost(before)
    return Budget(cost, dense, limit, limit - tolerance * dense, near=limit)


def shapes(before: Sizes, budget: Budget, *, heads_divide_hidden: bool, narrower: Sequence[int] = ()) -> list[Sizes]:
    """Return the legal sizes that meet the budget: at most one ff for each of the other sizes.

    :param narrower: hidden sizes that come into question beside the dense one.

    Where the preferred ff multiple leaves nothing between the budget's floor and limit, finer ones are tried, then
    plans up to its ``near`` mark.
    """
    bodies = list(_bodies(before, heads_divide_hidden, narrower))
    for step in _steps(before.ff):
        found = [s for s in _widest(bodies, budget, step) if budget.cost(s) >= budget.floor]
        if found:
            return found
    return [s for s in _a_little_above(bodies, budget, next(_steps(before.ff))) if s != before]


def nearest(
    before: Sizes, budget: Budget, *, heads_divide_hidden: bool, narrower: Sequence[int] = (), count: int = 3
) -> list[Sizes]:
    """Return the legal sizes whose cost is nearest to the limit, for the message that refuses a goal."""
    step = next(_steps(before.ff))
    around = (
        replace(body, ff=ff)
        for body in _bodies(before, heads_divide_hidden, narrower)
        for widths, at in [_place(body, budget, step, budget.limit)]
        for ff in widths[max(0, at - count) : at + count]  # costs never fall with ff: no other width is nearer
    )
    return heapq.nsmallest(
        count,
        (sizes for sizes in around if sizes != before),
        key=lambda s: (abs(budget.cost(s) - budget.limit), -s.hidden, -s.layers, -s.heads),
    )


def _steps(ff: int) -> Iterator[int]:
    """Multiples that ff may keep to, coarsest first.

    A dense width that no kernel or block-wise quantizer likes (it is no multiple of 8) gives every width freely.
    """
    first = alignment(ff)
    return (a for a in ALIGNMENTS if a <= first and (first >= _LIKED or a == 1))


def _bodies(before: Sizes, heads_divide_hidden: bool, narrower: Sequence[int]) -> Iterator[Sizes]:
    """Yield the sizes that a stock config accepts, with the dense ff, dense first."""
    for hidden in (before.hidden, *narrower):
        for layers in range(before.layers, 0, -1):
            for groups in range(before.kv_groups, 0, -1):
                for per_group in range(before.heads_per_group, 0, -1):
                    heads = groups * per_group
                    if before.heads_fill_hidden and heads * before.head_dim != hidden:
                        continue
                    if not heads_divide_hidden or hidden % heads == 0:
                        yield replace(before, hidden=hidden, layers=layers, kv_groups=groups, heads_per_group=per_group)


def _place(body: Sizes, budget: Budget, step: int, cost: float) -> tuple[Sequence[int], int]:
    """Return the ff widths of a body, and how many of them cost at most so much."""
    widths = [*range(step, body.ff, step), body.ff]
    return widths, bisect.bisect_right(widths, cost, key=lambda ff: budget.cost(replace(body, ff=ff)))


def _widest(bodies: Iterable[Sizes], budget: Budget, step: int) -> Iterator[Sizes]:
    """For each body the widest ff, a multiple of ``step`` or the dense width, that keeps to the budget."""
    for body in bodies:
        widths, fitting = _place(body, budget, step, budget.limit)
        if fitting:
            yield replace(body, ff=widths[fitting - 1])


def _a_little_above(bodies: Iterable[Sizes], budget: Budget, step: int) -> Iterator[Sizes]:
    """For each body the ff widths whose cost lies above the limit and not above the ``near`` mark."""
    for body in bodies:
        widths, fitting = _place(body, budget, step, budget.limit)
        for ff in widths[fitting : _place(body, budget, step, budget.near)[1]]:
            yield replace(body, ff=ff)
