"""The sizes of a decoder, as far as cutting goes."""

from collections.abc import Sequence
from dataclasses import dataclass


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
    def attention_weights(self) -> int:
        """Linear weights of one layer's attention: q, k, v, o."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_groups)

    @property
    def mlp_weights(self) -> int:
        """Linear weights of one layer's MLP: gate where there is one, up, down."""
        return self.mlp_matrices * self.hidden * self.ff

    @property
    def layer_weights(self) -> int:
        """Linear weights of one layer."""
        return self.attention_weights + self.mlp_weights

    @property
    def weights(self) -> int:
        """Linear weights of all layers."""
        return self.layers * self.layer_weights

    def describe(self) -> str:
        """Return the sizes in a line."""
        return (
            f"hidden {self.hidden}, {self.layers} layers, {self.heads} heads, {self.kv_groups} KV groups, ff {self.ff}"
        )


def describe_plan(sizes: Sizes, dropped: Sequence[int]) -> str:
    """Return sizes and the layers left out, in a line."""
    return f"{sizes.describe()} (without {', '.join(map(str, dropped))})" if dropped else sizes.describe()


def removed_share(before: Sizes, after: Sizes) -> float:
    """Share of the decoder's linear weights that is gone, 0 to 1."""
    return 1.0 - after.weights / before.weights
