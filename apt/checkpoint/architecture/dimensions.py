"""The sizes of a model, as its config states them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.console.errors import BadInputError, shown

#: Layers, widths and counts above this are no model's: a config that states them is corrupted.
LARGEST_SIZE: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: of ``count`` MLPs of inner size ``ff`` a token visits ``per_token``.

    ``shared_ff`` is the inner size of the MLP that every token visits beside them; 0 for none.
    """

    count: int
    per_token: int
    ff: int
    shared_ff: int


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values are cached as one vector a token.

    ``query_rank`` is ``None`` where queries are projected in one step. A query or key has ``plain_dim`` values
    without and ``rotary_dim`` with rotary embedding; a value has ``value_dim``.
    """

    query_rank: int | None
    kv_rank: int
    rotary_dim: int
    plain_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        """Size of a query head."""
        return self.plain_dim + self.rotary_dim


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated linear attention (Gated DeltaNet): a state of fixed size, ``value_heads`` matrices key size × value size.

    ``kernel`` tokens are mixed by a convolution before.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model.

    ``heads`` query heads share ``kv_heads`` key/value heads in groups of ``heads // kv_heads``; ``ff`` is the inner
    size of the MLP; ``tied`` says whether the head is the embedding.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    layers: int
    vocab: int
    context: int
    tied: bool
    experts: Experts | None = None
    latent: Latent | None = None
    linear: LinearAttention | None = None


def size_of(config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    """Return a size that a config states.

    :raises BadInputError: when it is missing, no whole number, or beyond all reason.
    """
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInputError(f"config.json: {key} is {shown(value)}, expected a positive whole number")
    if value > LARGEST_SIZE:
        raise BadInputError(f"config.json: {key} is {shown(value)}, more than any model has")
    return value
