"""What running a model takes: cache, operations and memory, from its descriptor and its sizes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.architecture.cache import sequence_cache
from apt.checkpoint.architecture.flops import decode_flops, prefill_flops

#: A cached value of the KV cache takes two bytes (fp16, bf16) unless the runtime is told otherwise.
KV_BYTES_PER_VALUE: Final = 2
#: Without ``--context`` figures are given for the model's context, but for no more tokens than this.
DEFAULT_CONTEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """The cache of ``batch_rows`` sequences of ``context_tokens``, in values of two bytes.

    :param bytes_per_token: what a token adds while no window is full.
    :param bytes_per_token_at_context: what the next token adds at that context: full windows add nothing.
    :param state_bytes_per_row: bytes of the states of linear attention, which do not grow.
    :param layers: layers by what they attend with: ``full``, ``sliding``, ``latent`` or ``linear``.
    """

    context_tokens: int
    batch_rows: int
    bytes_per_token: int
    bytes_per_token_at_context: int
    state_bytes_per_row: int
    layers: dict[str, int]
    window_tokens: int | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FlopFacts:
    """Floating-point operations at a context, as :mod:`apt.checkpoint.architecture.flops` counts them.

    :param prefill_flops_per_token: mean over a prompt of ``context_tokens``, logits of every token included.
    :param decode_flops_per_token: for the token that follows such a prompt.
    """

    context_tokens: int
    prefill_flops: int
    prefill_flops_per_token: int
    prefill_attention_flops_per_token: int
    decode_flops_per_token: int
    decode_attention_flops_per_token: int


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Memory for weights of a precision and the cache; activations and the runtime's own needs come on top."""

    precision: str
    weight_bytes: int
    kv_bytes: int
    total_bytes: int


def default_context(context: int) -> int:
    """Return the context that figures are given for when none is asked for."""
    return min(context, DEFAULT_CONTEXT)


def cache_facts(architecture: Architecture, config: Mapping[str, Any], context: int, batch: int) -> CacheFacts:
    """Return the cache at a context.

    :raises BadInputError: when the config lacks a size.
    """
    d = architecture.dimensions(config)
    kinds = architecture.kinds(config, d.layers)
    now, later = (sequence_cache(architecture, config, n) for n in (context, context + 1))
    empty = sequence_cache(architecture, config, 0).size_bytes(KV_BYTES_PER_VALUE)
    size = now.size_bytes(KV_BYTES_PER_VALUE)
    return CacheFacts(
        context_tokens=context,
        batch_rows=batch,
        bytes_per_token=architecture.kv_bytes_per_token(config, KV_BYTES_PER_VALUE),
        bytes_per_token_at_context=later.size_bytes(KV_BYTES_PER_VALUE) - size,
        state_bytes_per_row=empty,
        layers=dict(Counter(kind.mixer for kind in kinds)),
        window_tokens=next((kind.window for kind in kinds if kind.window), None),
        size_bytes=size * batch,
    )


def flop_facts(architecture: Architecture, config: Mapping[str, Any], context: int) -> FlopFacts:
    """Return the operations at a context.

    :raises BadInputError: when the config lacks a size.
    """
    prefill = prefill_flops(architecture, config, context)
    decode = decode_flops(architecture, config, context + 1)
    return FlopFacts(
        context_tokens=context,
        prefill_flops=prefill.per_token * context,
        prefill_flops_per_token=prefill.per_token,
        prefill_attention_flops_per_token=prefill.attention_per_token,
        decode_flops_per_token=decode.per_token,
        decode_attention_flops_per_token=decode.attention_per_token,
    )


def memory_needs(weight_bytes: Mapping[str, int], kv_bytes: int) -> tuple[MemoryNeed, ...]:
    """Return the memory for each precision: its weights and the cache."""
    return tuple(MemoryNeed(name, size, kv_bytes, size + kv_bytes) for name, size in weight_bytes.items())
