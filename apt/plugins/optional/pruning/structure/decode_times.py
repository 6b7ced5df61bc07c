"""How long a decode step takes at other sizes: a small table of measured times, and sums of its entries.

A step of one sequence is the time outside the layers (embedding, final norm, head) and that of every layer. Both are
measured on random models of the same config with few layers; attention and MLP at some widths each, with straight
lines between them. The prediction chooses a plan, and the cut model is measured afterwards.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from apt.checkpoint.architecture import Architecture
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.structure.surgery import sized_config

#: Attention and MLP are measured at these shares of their dense width, besides the whole.
LEVELS: Final = (0.25, 0.5, 0.75)

#: Models of this many more layers are compared with those of one; of wide layers, of which few fit, of one more.
_MORE_LAYERS: Final = 4
_WIDE_WEIGHTS: Final = 20_000_000


@dataclass(frozen=True)
class DecodeTimes:
    """Seconds of a decode step, by sizes.

    :param outside: seconds outside the layers.
    :param layer: seconds of a dense layer.
    :param attention: (linear weights of a layer's attention, seconds less than dense as a negative number), from
        narrow to dense; ``mlp`` likewise.
    """

    outside: float
    layer: float
    attention: tuple[tuple[int, float], ...]
    mlp: tuple[tuple[int, float], ...]

    def step_seconds(self, sizes: Sizes) -> float:
        """Return the predicted seconds of a step; it never falls when a size grows."""
        saved = _between(self.attention, sizes.attention_weights) + _between(self.mlp, sizes.mlp_weights)
        return self.outside + sizes.layers * max(self.layer + saved, 0.0)


def measure_decode_times(before: Sizes, seconds_of: Callable[[Sizes], float]) -> DecodeTimes:
    """Measure the table.

    :param seconds_of: measures the seconds of one decode step of a model of some sizes; see :func:`random_model`.
    """
    more = min(before.layers - 1, _MORE_LAYERS if before.layer_weights <= _WIDE_WEIGHTS else 1)
    one = seconds_of(replace(before, layers=1))

    def layer_seconds(sizes: Sizes) -> float:
        if not more:  # what lies outside the only layer cannot be told apart, nor does it have to be
            return one if sizes == before else seconds_of(sizes)
        base = one if sizes == before else seconds_of(replace(sizes, layers=1))
        return max(seconds_of(replace(sizes, layers=1 + more)) - base, 0.0) / more

    dense = layer_seconds(before)
    attention = [(sizes.attention_weights, layer_seconds(sizes) - dense) for sizes in _narrower_attention(before)]
    mlp = [(sizes.mlp_weights, layer_seconds(sizes) - dense) for sizes in _narrower_mlp(before)]
    return DecodeTimes(
        outside=max(one - dense, 0.0),
        layer=dense,
        attention=_rising([*attention, (before.attention_weights, 0.0)]),
        mlp=_rising([*mlp, (before.mlp_weights, 0.0)]),
    )


def random_model(
    model_class: Any, config: Mapping[str, Any], architecture: Architecture, before: Sizes, sizes: Sizes, dtype: Any
) -> Any:
    """Return a transformers model of the config's family with other sizes and random weights, for timing only."""
    changed = sized_config(config, architecture, range(sizes.layers), before, sizes)
    return model_class._from_config(model_class.config_class.from_dict(changed), dtype=dtype).eval()


def _narrower_attention(before: Sizes) -> list[Sizes]:
    """The dense sizes with fewer heads, where a config of any family takes them: powers of two less."""
    found: list[Sizes] = []
    if before.heads_fill_hidden:  # heads go with the hidden size only
        return found
    groups, per_group = before.kv_groups, before.heads_per_group
    while (groups % 2 == 0 or per_group % 2 == 0) and len(found) < len(LEVELS):
        groups, per_group = (groups // 2, per_group) if groups % 2 == 0 else (groups, per_group // 2)
        found.append(replace(before, kv_groups=groups, heads_per_group=per_group))
    return found


def _narrower_mlp(before: Sizes) -> list[Sizes]:
    widths = sorted({max(1, round(before.ff * level)) for level in LEVELS} - {before.ff})
    return [replace(before, ff=width) for width in widths]


def _rising(differences: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Make differences to the dense time never fall with the width, nor exceed zero, noise or not."""
    points: list[tuple[int, float]] = []
    for weights, difference in sorted(differences, reverse=True):
        points.append((weights, min(difference, points[-1][1] if points else 0.0)))
    return tuple(reversed(points))


def _between(points: tuple[tuple[int, float], ...], weights: int) -> float:
    """Read off a broken line; beyond its ends the nearest piece goes on."""
    if len(points) == 1:
        return points[0][1]
    at = min(max(bisect_left(points, weights, key=lambda p: p[0]), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (y1 - y0) * (weights - x0) / (x1 - x0)
