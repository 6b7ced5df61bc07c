"""The shape of every role's tensor, from the sizes of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apt.checkpoint.architecture.descriptor import Architecture, LayerKind
from apt.checkpoint.architecture.dimensions import Dimensions

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RoleTensor:
    """A role's weight in one layer.

    :param copies: how many there are: one for each expert, or for each head that has a norm of its own.
    :param bias: shape of the bias beside it; ``None`` for none.
    """

    shape: Shape
    copies: int
    bias: Shape | None


def role_tensors(
    architecture: Architecture, config: Mapping[str, Any], d: Dimensions, kind: LayerKind
) -> dict[str, RoleTensor]:
    """Return the tensors of a layer of a kind, by role."""
    found = {}
    for role in (*architecture.roles, *architecture.parameters):
        if architecture.has_role(role, kind, config):
            shape = _shape(architecture, d, role)
            found[role] = RoleTensor(shape, _copies(architecture, d, role), _bias(architecture, config, role, shape))
    return found


def _copies(architecture: Architecture, d: Dimensions, role: str) -> int:
    if "{}" not in architecture.roles.get(role, ""):
        return 1
    if role in ("q_norm", "k_norm"):
        return d.heads if role == "q_norm" else d.kv_heads
    return d.experts.count if d.experts else 0


def _bias(architecture: Architecture, config: Mapping[str, Any], role: str, shape: Shape) -> Shape | None:
    rule = architecture.biases.get(role, False)
    if role.endswith("norm"):
        stated = architecture.layer_norm and "{}" not in architecture.roles[role]
    else:
        stated = architecture.flag(config, rule) if isinstance(rule, str) else rule
    if not stated:
        return None
    return (shape[1 if architecture.transposed and len(shape) == 2 else 0],)


def _shape(architecture: Architecture, d: Dimensions, role: str) -> Shape:
    """Shape of a role's weight, ``[out, in]`` or transposed where the family stores it so."""
    if role.endswith("norm"):
        return (_norm_size(architecture, d, role),)
    if role.startswith("linear_"):
        return _linear_shape(d, role)
    if role.startswith(("expert_", "shared_", "router")):
        return _expert_shape(d, role)
    if d.latent is not None and role in ("q", "q_a", "q_b", "kv_a", "kv_b", "o"):
        return _latent_shape(d, role)
    queries, keys = d.heads * d.head_dim, d.kv_heads * d.head_dim
    out, into = {
        "q": (2 * queries if architecture.gated_queries else queries, d.hidden),
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


def _norm_size(architecture: Architecture, d: Dimensions, role: str) -> int:
    if role in ("q_norm", "k_norm"):
        heads = d.heads if role == "q_norm" else d.kv_heads
        return heads * d.head_dim if architecture.norms_over_all_heads else d.head_dim
    if role == "q_a_norm" and d.latent is not None:
        return d.latent.query_rank or 0
    if role == "kv_a_norm" and d.latent is not None:
        return d.latent.kv_rank
    if role == "linear_norm" and d.linear is not None:
        return d.linear.value_dim
    return d.hidden


def _latent_shape(d: Dimensions, role: str) -> Shape:
    assert d.latent is not None
    latent, rank = d.latent, d.latent.query_rank or 0
    queries = d.heads * latent.query_dim
    return {
        "q": (queries, d.hidden),
        "q_a": (rank, d.hidden),
        "q_b": (queries, rank),
        "kv_a": (latent.kv_rank + latent.rotary_dim, d.hidden),
        "kv_b": (d.heads * (latent.plain_dim + latent.value_dim), latent.kv_rank),
        "o": (d.hidden, d.heads * latent.value_dim),
    }[role]


def _linear_shape(d: Dimensions, role: str) -> Shape:
    assert d.linear is not None
    linear = d.linear
    values = linear.value_heads * linear.value_dim
    return {
        "linear_in": (linear.channels + values, d.hidden),
        "linear_gates": (2 * linear.value_heads, d.hidden),
        "linear_conv": (linear.channels, 1, linear.kernel),
        "linear_out": (d.hidden, values),
        "linear_decay": (linear.value_heads,),
        "linear_step": (linear.value_heads,),
    }[role]


def _expert_shape(d: Dimensions, role: str) -> Shape:
    assert d.experts is not None
    experts = d.experts
    return {
        "router": (experts.count, d.hidden),
        "router_bias": (experts.count,),
        "shared_router": (1, d.hidden),
        "expert_gate": (experts.ff, d.hidden),
        "expert_up": (experts.ff, d.hidden),
        "expert_down": (d.hidden, experts.ff),
        "shared_gate": (experts.shared_ff, d.hidden),
        "shared_up": (experts.shared_ff, d.hidden),
        "shared_down": (d.hidden, experts.shared_ff),
    }[role]
