"""Which cuts are legal, and which of them remove what was asked.

A plan is uniform over layers, because stock configs know one size for all. Axes: whole layers, KV groups with their
query heads, query heads within every group, ff channels. Sizes that a stock checkpoint or a kernel would refuse are
never proposed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from apt.checkpoint.architecture.alignment import ALIGNMENTS, alignment

#: A plan may remove so much more than was asked (share of the linear weights).
TOLERANCE: Final = 0.02

#: Counts as "what was asked" although it is a little less.
SLACK: Final = 0.0025


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a decoder is built from, as far as cutting goes. Linear weights only: biases and norms are not counted.

    :param mlp_matrices: 3 with a gate (gate, up, down), 2 without.
    :param heads_fill_hidden: the config has no head size, so that heads times head size stays the hidden size.
    """

    hidden: int
    head_dim: int
    layers: int
    kv_groups: int
    heads_per_group: int
    ff: int
    mlp_matrices: int = 3
    heads_fill_hidden: bool = False

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.kv_groups * self.heads_per_group

    @property
    def layer_weights(self) -> int:
        """Linear weights of one layer: q, k, v, o, gate where there is one, up, down."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_groups)
        return attention + self.mlp_matrices * self.hidden * self.ff

    @property
    def weights(self) -> int:
        """Linear weights of all layers."""
        return self.layers * self.layer_weights

    def describe(self) -> str:
        """Return the sizes in a line."""
        return f"{self.layers} layers, {self.heads} heads, {self.kv_groups} KV groups, ff {self.ff}"


def removed_share(before: Sizes, after: Sizes) -> float:
    """Share of the decoder's linear weights that is gone, 0 to 1."""
    return 1.0 - after.weights / before.weights


def shapes(before: Sizes, ratio: float, *, heads_divide_hidden: bool) -> list[Sizes]:
    """Return the legal sizes that remove ``ratio`` of the linear weights: at most one ff for each of the other sizes.

    A plan removes at least what was asked (less :data:`SLACK`) and at most :data:`TOLERANCE` more. Where the preferred
    ff multiple leaves nothing in that window, finer ones are tried, then plans up to ``TOLERANCE`` below.
    """
    for step in _steps(alignment(before.ff)):
        candidates = _candidates(before, ratio, step, heads_divide_hidden)
        found = [s for s in candidates if removed_share(before, s) - ratio <= TOLERANCE]
        if found:
            return found
    step = alignment(before.ff)
    near = _all(before, step, heads_divide_hidden)
    return [s for s in near if 0 < ratio - removed_share(before, s) <= TOLERANCE]


def nearest(before: Sizes, ratio: float, *, heads_divide_hidden: bool, count: int = 3) -> list[Sizes]:
    """Return the legal sizes whose removed share is nearest to ``ratio``, for the message that refuses one."""
    everything = _all(before, alignment(before.ff), heads_divide_hidden)
    return sorted(everything, key=lambda s: (abs(removed_share(before, s) - ratio), -s.layers, -s.heads))[:count]


def _steps(first: int) -> Iterator[int]:
    return (a for a in ALIGNMENTS if a <= first)


def _bodies(before: Sizes, heads_divide_hidden: bool) -> Iterator[tuple[int, int, int]]:
    """Yield (layers, KV groups, query heads per group) that a stock config accepts, dense first."""
    for layers in range(before.layers, 0, -1):
        for groups in range(before.kv_groups, 0, -1):
            for per_group in range(before.heads_per_group, 0, -1):
                heads = groups * per_group
                if before.heads_fill_hidden and heads * before.head_dim != before.hidden:
                    continue
                if not heads_divide_hidden or before.hidden % heads == 0:
                    yield layers, groups, per_group


def _candidates(before: Sizes, ratio: float, step: int, heads_divide_hidden: bool) -> Iterator[Sizes]:
    """For each body the widest ff, a multiple of ``step`` or the dense width, that removes what was asked."""
    for layers, groups, per_group in _bodies(before, heads_divide_hidden):
        body = replace(before, layers=layers, kv_groups=groups, heads_per_group=per_group, ff=0)
        allowed = before.weights * (1.0 - ratio + SLACK) - body.weights
        width = int(allowed // (before.mlp_matrices * before.hidden * layers))
        ff = before.ff if width >= before.ff else width // step * step
        if ff >= step:
            yield replace(body, ff=ff)


def _all(before: Sizes, step: int, heads_divide_hidden: bool) -> list[Sizes]:
    """All legal sizes that are smaller than the dense ones."""
    found = []
    for layers, groups, per_group in _bodies(before, heads_divide_hidden):
        body = replace(before, layers=layers, kv_groups=groups, heads_per_group=per_group, ff=0)
        found += [replace(body, ff=ff) for ff in range(step, before.ff + 1, step)]
    return [s for s in found if s != before]
