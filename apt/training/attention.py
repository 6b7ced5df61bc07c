"""Attention for short windows on a CPU.

PyTorch's fused CPU attention does not use bf16 products in its backward pass. For windows of a few hundred tokens two
plain batched products are twice as fast (8 rows × 8 heads × 256 tokens × 32, one thread of an AVX-512 BF16 machine:
11 ms against 29 ms, forward and backward), and their score matrix is small.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.training.contract import RowSource, RowStream
from apt.training.data.rows import longest_row

NAME: Final = "apt_short_window"

#: Families whose attention is this and nothing more (no soft cap, no sinks).
PLAIN_FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})

#: Longest window; beyond it the score matrix outweighs what the products save.
LONGEST: Final = 512


def short_window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention of grouped queries by two batched products.

    A batch whose windows are longer than :data:`LONGEST` goes to PyTorch's own attention: how long rows are is not
    always known before they come.

    :param query: ``[rows, heads, tokens, head size]``; key and value have their own number of heads.
    :param attention_mask: bool ``[rows or 1, 1, tokens, tokens]``, true where attended; ``None`` for causal.
    :returns: ``[rows, tokens, heads, head size]``.
    """
    rows, heads, tokens, size = query.shape
    if tokens > LONGEST or key.shape[2] != tokens:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attend: Any = sdpa_attention_forward
        out, _none = attend(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest)
        return out, None
    kv_heads = key.shape[1]
    group = heads // kv_heads
    # The queries of a group lie behind one another, so that a key head is multiplied once, without copies.
    folded = query.reshape(rows * kv_heads, group * tokens, size)
    scale = scaling if scaling is not None else size**-0.5
    bias = _bias(attention_mask, tokens, query)
    bias = bias.expand(rows, kv_heads, group, tokens, tokens).reshape(rows * kv_heads, group * tokens, tokens)
    scores = torch.baddbmm(bias, folded, key.flatten(0, 1).transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, -1, dtype=scores.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, dropout, training=module.training)
    out = torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, tokens, size)
    return out.transpose(1, 2).contiguous(), None


def _bias(mask: Tensor | None, tokens: int, like: Tensor) -> Tensor:
    """What is added to the scores: ``[rows or 1, 1, 1, tokens, tokens]``."""
    if mask is None:
        attended = torch.ones(tokens, tokens, dtype=torch.bool, device=like.device).tril()
    else:
        attended = mask[:, :, None, :, :tokens]
    bias = torch.zeros(attended.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(~attended, torch.finfo(like.dtype).min)


@contextmanager
def fast_attention(models: Sequence[Any], data: RowSource | RowStream, dtype: torch.dtype | None) -> Iterator[None]:
    """Give the models the attention above where it is the faster one; their own again afterwards.

    Where the length of the rows is not known, each batch's own decides.
    """
    window = longest_row(data)
    known = window != sys.maxsize
    changed: list[tuple[Any, str]] = []
    try:
        for model in models:
            own = model.config._attn_implementation
            if (not known or window <= LONGEST) and _gains(model, dtype) and own in ("sdpa", "eager"):
                _register()
                model.set_attn_implementation(NAME)
                changed.append((model, own))
        yield
    finally:
        for model, own in changed:
            model.set_attn_implementation(own)


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Let a model attend by the implementation ``name``; its own again afterwards."""
    own = model.config._attn_implementation
    if own == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def _gains(model: Any, dtype: torch.dtype | None) -> bool:
    plain = model.config.model_type in PLAIN_FAMILIES
    return plain and dtype is torch.bfloat16 and model.device.type == "cpu"


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, short_window_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
