"""Which sizes a family's stock config accepts; what is refused is refused with the nearest legal sizes."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.architecture.alignment import alignment
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.structure.surgery import sized_config, stock_config

#: Sizes of a plan that may only shrink.
_AXES: Final = ("hidden", "layers", "kv_groups", "heads_per_group", "ff")

#: Shares of the hidden size that a search tries.
_NARROWER: Final = (0.875, 0.75)

#: So many legal plans are told.
_TOLD: Final = 3


def fault(before: Sizes, after: Sizes, architecture: Architecture) -> str:
    """Say why stock models of the family cannot have these sizes; ``""`` when they can."""
    for axis in _AXES:
        if not 0 < getattr(after, axis) <= getattr(before, axis):
            return f"{axis.replace('_', ' ')} {getattr(after, axis)} is not between 1 and {getattr(before, axis)}"
    if after.heads_fill_hidden and after.heads * after.head_dim != after.hidden:
        return (
            f"{architecture.model_type} has no head size in its config: heads and hidden size are cut together, "
            f"{after.heads} heads of {after.head_dim} are not the hidden size {after.hidden}"
        )
    if architecture.heads_divide_hidden and after.hidden % after.heads:
        return (
            f"the config of {architecture.model_type} refuses a hidden size of {after.hidden} with {after.heads} heads"
        )
    return ""


def check(
    before: Sizes, after: Sizes, architecture: Architecture, config: Mapping[str, Any], config_class: Any
) -> None:
    """Refuse sizes that stock transformers would refuse, before any work is done.

    :param config: of the dense model.
    :param config_class: the family's config class; its own checks are run on the config of the cut model.
    :raises UnsupportedError: with the reason, and the nearest legal sizes.
    """
    reason = fault(before, after, architecture)
    if reason:
        plans = nearest_legal(before, after, architecture)
        hint = "; ".join(s.describe() for s in plans)
        raise UnsupportedError(reason, hint=f"the nearest: {hint}" if plans else "")
    stock_config(config_class, sized_config(config, architecture, range(after.layers), before, after))


def nearest_legal(before: Sizes, after: Sizes, architecture: Architecture) -> list[Sizes]:
    """Return the legal sizes nearest to ``after``, by the relative change of hidden size and heads."""
    within = replace(after, **{axis: min(max(getattr(after, axis), 1), getattr(before, axis)) for axis in _AXES})
    found = [s for s in _around(before, within) if s != before and not fault(before, s, architecture)]

    def distance(sizes: Sizes) -> tuple[float, int]:
        heads, hidden = (
            abs(sizes.heads - within.heads) / before.heads,
            abs(sizes.hidden - within.hidden) / before.hidden,
        )
        return heads + hidden, -sizes.heads

    return sorted(found, key=distance)[:_TOLD]


def _around(before: Sizes, after: Sizes) -> Iterator[Sizes]:
    for groups in range(1, before.kv_groups + 1):
        for per_group in range(1, before.heads_per_group + 1):
            for hidden in {after.hidden, *hidden_sizes(before)}:
                yield replace(after, kv_groups=groups, heads_per_group=per_group, hidden=hidden)


def with_hidden(before: Sizes, hidden: int) -> Sizes:
    """Return the sizes with another hidden size, and with as many heads as fill it where the config has no head size.

    :param hidden: there a multiple of the head size.
    """
    if before.heads_fill_hidden:
        return replace(before, hidden=hidden, kv_groups=hidden // (before.head_dim * before.heads_per_group))
    return replace(before, hidden=hidden)


def narrower(before: Sizes) -> list[int]:
    """Return the hidden sizes that a search looks at beside the dense one: those nearest to :data:`_NARROWER`.

    Two of them, since each takes a pass of its own: what a width costs cannot be told from one layer.
    """
    sizes = hidden_sizes(before)[1:]
    found = {min(sizes, key=lambda size: (abs(size - share * before.hidden), -size)) for share in _NARROWER if sizes}
    return sorted(found, reverse=True)


def hidden_sizes(before: Sizes) -> list[int]:
    """Return the hidden sizes that kernels and block-wise quantizers like, the dense one first."""
    step = before.head_dim if before.heads_fill_hidden else alignment(before.hidden)
    return [before.hidden, *range((before.hidden - 1) // step * step, 0, -step)]
