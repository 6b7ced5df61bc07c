"""Whole distributions made into what is known at some ids only: the likeliest ids, or an unbiased sample."""

from collections.abc import Iterator

import torch
from torch import Tensor

from apt.console.errors import UsageError
from apt.training.losses.linear import chunk_tokens
from apt.training.teachers.contract import DenseTargets, SparseTargets

#: Elements of a vocabulary's width that cumulative sums in float64 are held of at a time.
_SUMS_ELEMENTS = 1 << 20


def top_k_of(targets: DenseTargets, k: int, *, shared_vocab: int | None = None) -> SparseTargets:
    """Return the ``k`` likeliest ids of each token, the likeliest first.

    :param shared_vocab: ids below it are looked at, and the distribution is over them alone; all when ``None``.
    :raises UsageError: when there are fewer ids.
    """
    vocabulary = min(targets.head.weight.shape[0], shared_vocab or 2**31)
    if k > vocabulary:
        raise UsageError(f"k is {k}, and there are {vocabulary} ids to choose from")
    ids, log_probs = [], []
    for log_p in log_probabilities(targets, shared_vocab):
        found = log_p.topk(k, dim=-1)
        ids.append(found.indices)
        log_probs.append(found.values)
    known = _joined(log_probs, targets, k)
    return SparseTargets(_joined(ids, targets, k, torch.int64), known.exp(), known, "top_k")


def sample_of(targets: DenseTargets, k: int, *, rng: torch.Generator, shared_vocab: int | None = None) -> SparseTargets:
    """Return ``k`` draws from each token's distribution, with replacement.

    Each draw weighs one over ``k``; an id that is drawn again comes again.

    :param shared_vocab: ids below it are drawn, from the distribution over them alone; all when ``None``.
    """
    # All at once, so that the draws do not depend on how many tokens are held at a time.
    points = torch.rand(len(targets.hidden), k, generator=rng, dtype=torch.float64, device=rng.device)
    points = points.to(targets.hidden.device)
    ids, log_probs = [], []
    begin = 0
    for log_p in log_probabilities(targets, shared_vocab):
        drawn = draw(log_p, points[begin : begin + len(log_p)])
        begin += len(log_p)
        ids.append(drawn)
        log_probs.append(log_p.gather(1, drawn))
    known = _joined(log_probs, targets, k)
    return SparseTargets(_joined(ids, targets, k, torch.int64), torch.full_like(known, 1.0 / k), known, "sampled")


def log_probabilities(targets: DenseTargets, shared_vocab: int | None) -> Iterator[Tensor]:
    """Log-probabilities ``[tokens, ids]`` of a chunk of tokens after another."""
    hidden, head = targets.hidden, targets.head
    step = chunk_tokens(head.weight)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for begin in range(0, len(hidden), step):
            logits = head.logits(hidden[begin : begin + step].to(head.weight.dtype), head.weight)
            yield torch.log_softmax(logits[:, :shared_vocab], -1)


def draw(log_p: Tensor, points: Tensor) -> Tensor:
    """Ids ``[tokens, k]`` at points of ``[0, 1)`` by the inverse of the cumulative distribution.

    In float64: over 150,000 ids, fp32 would round the probabilities of the unlikely ones away.
    """
    step = max(1, _SUMS_ELEMENTS // log_p.shape[1])
    parts = []
    for begin in range(0, len(log_p), step):
        sums = log_p[begin : begin + step].double().exp_().cumsum(-1)
        at = points[begin : begin + step] * sums[:, -1:]
        parts.append(torch.searchsorted(sums, at, right=True).clamp_max_(log_p.shape[1] - 1))
    return torch.cat(parts)


def _joined(parts: list[Tensor], targets: DenseTargets, k: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, k, dtype=dtype, device=targets.hidden.device)
