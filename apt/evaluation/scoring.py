"""Log-likelihoods of token rows, and how far one model's predictions are from another's."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.console.errors import BadInputError
from apt.console.progress import progress
from apt.evaluation.batching import plan_batches
from apt.evaluation.forward import CHUNK_VALUES, LOGITS_BUDGET, parts_of
from apt.evaluation.scorers import as_scorer
from apt.evaluation.statistics import Estimate, ratio_estimate

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from apt.evaluation.texts import Rows

__all__ = [
    "Divergence",
    "Estimate",
    "RowScores",
    "bits_per_byte",
    "divergence",
    "divergence_from_logits",
    "perplexity",
    "score_rows",
    "score_together",
    "token_divergence",
]

#: Positions of foreign predictions that are turned to fp32 at a time.
_POSITIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of rows, each a window of its own.

    :param nll: float64 ``[rows]``, summed negative log-likelihood in nats.
    :param tokens: int64 ``[rows]``, tokens that were counted.
    """

    nll: "NDArray[Any]"
    tokens: "NDArray[Any]"


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model is from a reference on the same tokens.

    :param kl: mean KL(reference || model) in nats per token.
    :param agreement: share of tokens, 0–1, where both have the same most likely token.
    """

    kl: Estimate
    agreement: Estimate
    tokens: int


def perplexity(scores: RowScores, sources: "Sequence[Any] | None" = None) -> Estimate:
    """``exp`` of the mean negative log-likelihood per token, with its interval over rows, or their sources."""
    import numpy as np

    return ratio_estimate(scores.nll, scores.tokens, np.exp, sources=sources)


def bits_per_byte(
    scores: RowScores, n_bytes: "int | Sequence[int]", sources: "Sequence[Any] | None" = None
) -> Estimate:
    """Bits that the model needs for a byte of the counted text.

    :param n_bytes: UTF-8 bytes that the counted tokens stand for, in all or per row; given in all, they are laid
        on the rows by their tokens.
    """
    import numpy as np

    if isinstance(n_bytes, int):
        weights = scores.tokens * (n_bytes / scores.tokens.sum())
    else:
        weights = np.asarray(n_bytes, np.float64)
    return ratio_estimate(scores.nll / np.log(2.0), weights, sources=sources)


def score_rows(model: Any, rows: "Rows", *, batch_rows: int = 8) -> RowScores:
    """Score rows with a transformers causal language model, in any order of rows and batch size the same.

    :raises BadInputError: when a token id lies outside the model's vocabulary, or nothing is to be counted.
    """
    return score_together([model], rows, batch_rows=batch_rows)[0][0]


def divergence(reference_model: Any, model: Any, rows: "Rows", *, batch_rows: int = 8) -> Divergence:
    """KL(reference || model) and top-1 agreement over the counted tokens of ``rows``.

    :raises BadInputError: when the vocabularies differ.
    """
    return score_together([reference_model, model], rows, batch_rows=batch_rows)[1][0]


def score_together(
    models: Sequence[Any], rows: "Rows", *, batch_rows: int = 8
) -> tuple[list[RowScores], list[Divergence]]:
    """Score several models in one pass; each is run once over the rows.

    Rows of like length run side by side, and logits are computed at counted positions alone. Memory beside the weights:
    the activations of one batch, at most :data:`~apt.evaluation.forward.LOGITS_BUDGET` logits of all models together,
    and three chunks of :data:`~apt.evaluation.forward.CHUNK_VALUES` log-probabilities.

    :param models: transformers causal language models, or scorers (:mod:`apt.evaluation.scorers`).
    :returns: one :class:`RowScores` a model, and the :class:`Divergence` of each further model from the first.
    """
    import numpy as np

    scorers = [as_scorer(m) for m in models]
    _check(scorers, rows)
    sums = np.zeros((len(scorers), len(rows), 3))
    lengths = [int(n.nonzero()[-1]) + 1 if n.any() else 0 for n in rows.counted]
    most = max(1, LOGITS_BUDGET // (scorers[0].vocabulary * len(scorers)))
    cost = max(s.pass_tokens for s in scorers)
    with ExitStack() as stack, progress("scoring", len(rows), "rows") as bar:
        for scorer in scorers:
            stack.enter_context(scorer.running())
        for batch in plan_batches(lengths, most_rows=batch_rows, most_tokens=most, pass_tokens=cost):
            sums[:, batch] = _batch_sums(scorers, rows, batch, lengths[batch[0]], most)
            bar.advance(len(batch))
    tokens = rows.counted.sum(dim=1).numpy().astype(np.int64)
    scores = [RowScores(sums[m, :, 0], tokens) for m in range(len(scorers))]
    distances = [_divergence(sums[m, :, 1], sums[m, :, 2], tokens) for m in range(1, len(scorers))]
    return scores, distances


def _divergence(kl: "NDArray[Any]", agree: "NDArray[Any]", tokens: "NDArray[Any]") -> Divergence:
    return Divergence(ratio_estimate(kl, tokens), ratio_estimate(agree, tokens), int(tokens.sum()))


def _batch_sums(scorers: Sequence[Any], rows: "Rows", batch: list[int], width: int, most: int) -> "NDArray[Any]":
    """Return ``[models, rows of the batch, 3]``: nll, KL to the first model, agreements with it, summed over a row."""
    import torch

    ids = rows.ids[batch, : width + 1]
    counted = rows.counted[batch, :width]
    totals = torch.zeros(len(scorers), len(batch), 3, dtype=torch.float64)
    for where in parts_of(counted, most):
        outputs = [s.logits(ids[:, :width], where) for s in scorers]
        row, target = where.nonzero()[:, 0], ids[:, 1:][where]
        step = max(1, CHUNK_VALUES // outputs[0].shape[-1])
        for begin in range(0, len(row), step):
            part = slice(begin, begin + step)
            for m, parts in enumerate(_position_figures([o[part] for o in outputs], target[part])):
                totals[m].index_add_(0, row[part], parts)
    return totals.numpy()


def _position_figures(logits: "Sequence[torch.Tensor]", target: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """Yield float64 ``[positions, 3]`` on the CPU for each model: nll, KL to the first model, agreement with it."""
    import torch

    first: torch.Tensor | None = None
    for values in logits:
        logp = torch.log_softmax(values.float().cpu(), dim=-1)
        parts = torch.zeros(len(logp), 3, dtype=torch.float64)
        parts[:, 0] = -logp.gather(1, target[:, None])[:, 0].double()
        if first is None:
            first = logp
        else:
            parts[:, 1], parts[:, 2] = token_divergence(first, logp)
        yield parts


def token_divergence(reference: "torch.Tensor", other: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """KL(reference || other) and equality of the most likely token, position by position.

    :param reference: log-probabilities ``[positions, vocabulary]`` in fp32; ``other`` alike.
    :returns: two float64 tensors ``[positions]``; the KL is at least 0 (rounding is clipped).
    """
    import torch

    # A token that the reference rules out adds nothing, whatever the other says: 0 * inf is not NaN here.
    p = reference.exp()
    terms = torch.where(p > 0, p * (reference - other), torch.zeros(()))
    kl = terms.sum(dim=-1, dtype=torch.float64).clamp(min=0.0)
    agree = (reference.argmax(dim=-1) == other.argmax(dim=-1)) & ~kl.isnan()  # NaN is nobody's most likely token
    return kl, agree.double()


def divergence_from_logits(reference: Any, other: Any, row: Any | None = None) -> Divergence:
    """Divergence of predictions that were computed elsewhere (another runtime, say).

    :param reference: logits or log-probabilities ``[positions, vocabulary]``, numpy or torch; ``other`` alike.
    :param row: int ``[positions]``, the window that a position belongs to, the unit of the interval; blocks of
        64 positions when absent.
    :raises BadInputError: when the shapes differ.
    """
    import numpy as np
    import torch

    a, b = torch.as_tensor(reference), torch.as_tensor(other)
    if a.shape != b.shape or a.ndim != 2:
        raise BadInputError(f"predictions of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
    kl, agree = np.empty(len(a)), np.empty(len(a))
    for chunk in range(0, len(a), _POSITIONS):
        part = slice(chunk, chunk + _POSITIONS)
        pair = [torch.log_softmax(x[part].float(), dim=-1) for x in (a, b)]
        kl[part], agree[part] = (x.numpy() for x in token_divergence(pair[0], pair[1]))
    group = np.arange(len(a)) // 64 if row is None else np.unique(np.asarray(row), return_inverse=True)[1]
    return _divergence(np.bincount(group, kl), np.bincount(group, agree), np.bincount(group))


def _check(scorers: Sequence[Any], rows: "Rows") -> None:
    """Refuse what would fail deep inside a model, or give a figure of nothing."""
    if not len(rows.ids) or not bool(rows.counted.any()):
        raise BadInputError(f"the text {rows.source!r} has no token to score")
    sizes = {s.vocabulary for s in scorers}
    if len(sizes) > 1:
        raise BadInputError(f"models with vocabularies of {sorted(sizes)} tokens cannot be compared token by token")
    known = min(s.known_ids for s in scorers)
    low, high = int(rows.ids.min()), int(rows.ids.max())
    if low < 0 or high >= known:
        raise BadInputError(f"the text {rows.source!r} has token ids {low}..{high}; the model knows 0..{known - 1}")
