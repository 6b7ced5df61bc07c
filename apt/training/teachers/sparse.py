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
    _refuse_too_many(targets, k, shared_vocab)
    ids, log_probs = [], []
    for log_p in _log_probabilities(targets, shared_vocab):
        found = log_p.topk(k, dim=-1)
        ids.append(found.indices)
        log_probs.append(found.values)
    known = _joined(log_probs, targets, k)
    return SparseTargets(_joined(ids, targets, k, torch.int64), known.exp(), known, "top_k")


def sample_of(targets: DenseTargets, k: int, *, rng: torch.Generator, shared_vocab: int | None = None) -> SparseTargets:
    """Return ``k`` draws from each token's distribution, with replacement.

    An id's weight is the share of the draws that it got. Ids drawn more than once leave places free; these hold other
    ids with weight 0, so that none repeats.

    :param shared_vocab: ids below it are drawn, from the distribution over them alone; all when ``None``.
    :raises UsageError: when there are fewer ids.
    """
    vocabulary = _refuse_too_many(targets, k, shared_vocab)
    # All at once, so that the draws do not depend on how many tokens are held at a time.
    points = torch.rand(len(targets.hidden), k, generator=rng, dtype=torch.float64, device=rng.device)
    points = points.to(targets.hidden.device)
    ids, weights, log_probs = [], [], []
    begin = 0
    for log_p in _log_probabilities(targets, shared_vocab):
        drawn = draw(log_p, points[begin : begin + len(log_p)])
        begin += len(log_p)
        own, share = _distinct(drawn, vocabulary)
        ids.append(own)
        weights.append(share.to(log_p.dtype))
        log_probs.append(log_p.gather(1, own))
    return SparseTargets(
        _joined(ids, targets, k, torch.int64), _joined(weights, targets, k), _joined(log_probs, targets, k), "sampled"
    )


def _refuse_too_many(targets: DenseTargets, k: int, shared_vocab: int | None) -> int:
    """Return the number of ids that are looked at."""
    vocabulary = targets.head.weight.shape[0]
    if shared_vocab is not None:
        vocabulary = min(vocabulary, shared_vocab)
    if not 1 <= k <= vocabulary:
        raise UsageError(f"k is {k}, and the vocabulary has {vocabulary} ids to choose from")
    return vocabulary


def _log_probabilities(targets: DenseTargets, shared_vocab: int | None) -> Iterator[Tensor]:
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


def _distinct(drawn: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Ids that repeat in no row and their shares of the draws, both ``[tokens, k]``."""
    k = drawn.shape[1]
    drawn = drawn.sort(-1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    # How often: each draw counts for the place of its id's first one.
    place = first.cumsum(-1) - 1
    counts = torch.zeros(drawn.shape, dtype=torch.float64, device=drawn.device)
    counts.scatter_add_(1, place, torch.ones_like(counts))
    starts = torch.where(first, counts.gather(1, place), 0.0)
    # Of twice k ids at least k are not drawn; the lowest of them go where an id repeats.
    free = torch.ones(len(drawn), min(vocabulary, 2 * k), dtype=torch.int8, device=drawn.device)
    low = drawn.clamp_max(free.shape[1] - 1)
    free.scatter_reduce_(1, low, (drawn >= free.shape[1]).to(free.dtype), "amin")
    others = free.argsort(dim=-1, descending=True, stable=True)
    number = (~first).cumsum(-1) - 1
    return torch.where(first, drawn, others.gather(1, number.clamp_min(0))), starts / k


def _joined(parts: list[Tensor], targets: DenseTargets, k: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, k, dtype=dtype, device=targets.hidden.device)
