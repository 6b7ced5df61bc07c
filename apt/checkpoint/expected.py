"""The tensors that a config asks for, from the architecture's descriptor: names and legal shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apt.checkpoint.architecture import Architecture, Dimensions

Shape = tuple[int, ...]

#: Families whose attention norms run over all heads together, not over each.
_NORMS_OVER_ALL_HEADS = frozenset({"olmo2"})


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor's shape, and whether a checkpoint without it is whole."""

    shape: Shape
    optional: bool = False


def expected_tensors(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, ExpectedTensor]:
    """Return every tensor that transformers would look for, by name.

    A tied head is optional, every other tensor is needed.

    :raises BadInputError: when the config lacks a size.
    """
    d = architecture.dimensions(config)
    layer_norm_bias = architecture.model_type == "gpt2"  # the only family here with LayerNorm in place of RMSNorm
    found = {
        architecture.embedding: ExpectedTensor((d.vocab, d.hidden)),
        architecture.head: ExpectedTensor((d.vocab, d.hidden), optional=d.tied),
        architecture.final_norm: ExpectedTensor((d.hidden,)),
    }
    for other in architecture.other_embeddings:
        found[other] = ExpectedTensor((d.context, d.hidden))
    if layer_norm_bias:
        found[architecture.final_norm.replace("weight", "bias")] = ExpectedTensor((d.hidden,))
    for layer in range(d.layers):
        for role in architecture.roles:
            shape = _shape(architecture, d, role)
            found[architecture.layer_tensor(layer, role)] = ExpectedTensor(shape)
            if _has_bias(architecture, config, role) or (layer_norm_bias and role.endswith("norm")):
                size = shape[1] if architecture.transposed and len(shape) == 2 else shape[0]
                found[architecture.layer_tensor(layer, role, "bias")] = ExpectedTensor((size,))
    return found


def _has_bias(architecture: Architecture, config: Mapping[str, Any], role: str) -> bool:
    rule = architecture.biases.get(role, False)
    return bool(config.get(rule, False)) if isinstance(rule, str) else rule


def _shape(architecture: Architecture, d: Dimensions, role: str) -> Shape:
    """Shape of a role's weight, ``[out, in]`` or transposed where the family stores it so."""
    queries, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    if role in ("q_norm", "k_norm"):
        whole = architecture.model_type in _NORMS_OVER_ALL_HEADS
        return (({"q_norm": queries, "k_norm": keys}[role]) if whole else d.head_dim,)
    if role.endswith("norm"):
        return (d.hidden,)
    out, into = {
        "q": (queries, d.hidden),
        "k": (keys, d.hidden),
        "v": (keys, d.hidden),
        "qkv": (queries + 2 * keys, d.hidden),
        "o": (d.hidden, queries),
        "gate": (d.ff, d.hidden),
        "up": (d.ff, d.hidden),
        "gate_up": (2 * d.ff, d.hidden),
        "down": (d.hidden, d.ff),
    }[role]
    return (into, out) if architecture.transposed else (out, into)
