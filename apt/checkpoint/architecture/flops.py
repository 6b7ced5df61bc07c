"""Floating-point operations of a forward pass, in closed form: two for each multiply-add of a matrix product.

Counted as ``torch.utils.flop_counter`` counts a forward pass: matrix products and convolutions only, no norms,
activations or softmax, and attention over the whole square of a prompt, the masked half included. A kernel that
skips the masked half needs less; the share of attention is given apart.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from apt.checkpoint.architecture.descriptor import Architecture, LayerKind
from apt.checkpoint.architecture.dimensions import Dimensions
from apt.checkpoint.architecture.shapes import role_tensors


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Operations a token.

    :param matrices_per_token: products with the weights, the head among them; of the experts those that a token visits.
    :param attention_per_token: scores and weighted values, or the update of a state.
    """

    matrices_per_token: int
    attention_per_token: int

    @property
    def per_token(self) -> int:
        """All of them."""
        return self.matrices_per_token + self.attention_per_token


def prefill_flops(architecture: Architecture, config: Mapping[str, Any], tokens: int) -> ForwardFlops:
    """Return the operations a token of a forward pass over a prompt of ``tokens``, with logits for every token.

    :raises BadInputError: when the config lacks a size.
    """
    return _flops(architecture, config, tokens, latent_cached=False)


def decode_flops(architecture: Architecture, config: Mapping[str, Any], tokens: int) -> ForwardFlops:
    """Return the operations of one new token that attends to ``tokens`` tokens, itself among them.

    Latent attention is counted with its up-projection absorbed (DeepSeek-V2, section 2.1.2), as engines compute it.

    :raises BadInputError: when the config lacks a size.
    """
    return _flops(architecture, config, tokens, latent_cached=True)


def active_parameters(architecture: Architecture, config: Mapping[str, Any], total: int) -> int:
    """Return how many of ``total`` parameters a token uses: all but those of the experts that it does not visit."""
    d = architecture.dimensions(config)
    if d.experts is None:
        return total
    idle = 0
    for kind, layers in Counter(architecture.kinds(config, d.layers)).items():
        tensors = role_tensors(architecture, config, d, kind)
        each = sum(prod(t.shape) for role, t in tensors.items() if role.startswith("expert_"))
        idle += layers * each * (d.experts.count - d.experts.per_token)
    return total - idle


def _flops(architecture: Architecture, config: Mapping[str, Any], tokens: int, *, latent_cached: bool) -> ForwardFlops:
    d = architecture.dimensions(config)
    matrices, attention = 2 * d.vocab * d.hidden, 0  # the head; the embedding is a look-up
    for kind, layers in Counter(architecture.kinds(config, d.layers)).items():
        tensors = role_tensors(architecture, config, d, kind)
        for role, tensor in tensors.items():
            if len(tensor.shape) >= 2:
                visited = d.experts.per_token if d.experts and role.startswith("expert_") else 1
                matrices += 2 * layers * visited * prod(tensor.shape)
        attention += layers * _attention(d, kind, tokens, latent_cached=latent_cached)
    return ForwardFlops(matrices, attention)


def _attention(d: Dimensions, kind: LayerKind, tokens: int, *, latent_cached: bool) -> int:
    """Operations of a layer's attention for one token that attends to ``tokens``."""
    if kind.mixer == "linear":
        assert d.linear is not None
        # Read the state by the key, write the correction, read it by the query (Gated DeltaNet, equation 10).
        return 6 * d.linear.value_heads * d.linear.key_dim * d.linear.value_dim
    seen = tokens if kind.window is None else min(tokens, kind.window)
    if kind.mixer == "latent":
        assert d.latent is not None
        wide = 2 * d.latent.kv_rank + d.latent.rotary_dim
        return 2 * d.heads * seen * (wide if latent_cached else d.latent.query_dim + d.latent.value_dim)
    return 4 * d.heads * d.head_dim * seen
