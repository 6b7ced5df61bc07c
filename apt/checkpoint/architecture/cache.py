"""How much memory the cache of a sequence takes: keys and values, latent vectors, states of fixed size.

The figures are those of the caches that transformers makes, and the tests compare them: a layer with a window keeps
``window - 1`` tokens, the next one being the last of its window; latent attention keeps the compressed vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.architecture.descriptor import Architecture, LayerKind
from apt.checkpoint.architecture.dimensions import Dimensions

#: Values of a recurrent state are kept in fp32, whatever the model's dtype.
STATE_VALUE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class SequenceCache:
    """What one sequence of ``tokens`` tokens keeps.

    :param values: cached values in the model's dtype, convolution states among them.
    :param state_bytes: bytes of recurrent states, which do not grow and are fp32.
    """

    tokens: int
    values: int
    state_bytes: int

    def size_bytes(self, bytes_per_value: int = 2) -> int:
        """Bytes with values of a given size."""
        return self.values * bytes_per_value + self.state_bytes


def values_per_token(d: Dimensions, kind: LayerKind) -> int:
    """Return how many values a token adds to a layer's cache while no window is full."""
    if kind.mixer == "linear":
        return 0
    if kind.mixer == "latent":
        assert d.latent is not None
        return d.latent.kv_rank + d.latent.rotary_dim
    return 2 * d.kv_heads * d.head_dim


def sequence_cache(architecture: Architecture, config: Mapping[str, Any], tokens: int) -> SequenceCache:
    """Return what a sequence of ``tokens`` tokens keeps.

    :raises BadInputError: when the config lacks a size.
    """
    d = architecture.dimensions(config)
    values = state_bytes = 0
    for kind in architecture.kinds(config, d.layers):
        kept = tokens if kind.window is None else min(tokens, max(kind.window - 1, 1))
        values += values_per_token(d, kind) * kept
        if kind.mixer == "linear" and d.linear is not None:
            values += d.linear.channels * d.linear.kernel
            state_bytes += d.linear.value_heads * d.linear.key_dim * d.linear.value_dim * STATE_VALUE_BYTES
    return SequenceCache(tokens, values, state_bytes)
