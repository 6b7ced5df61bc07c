"""What each token of a batch weighs in its step."""

from typing import Final, Literal

import torch
from torch import Tensor

from apt.training.contract import Batch, counted
from apt.training.teachers.contract import SparseTargets, Targets
from apt.training.teachers.sparse import log_probabilities

#: ``teacher_entropy``: the entropy of the teacher's distribution in nats, so that open choices count most;
#: ``teacher_confidence``: one over the perplexity of that distribution, so that they count least. (By the teacher's
#: entropy tokens are told apart in EGAD, arXiv 2605.01732, which goes from the second to the first as it trains.)
TokenWeight = Literal["uniform", "teacher_entropy", "teacher_confidence"]

#: ``sequences``: the weights of each document's counted tokens sum to one.
SequenceWeight = Literal["tokens", "sequences"]

_NOTHING: Final = 1e-30


def weigh(
    batch: Batch, targets: Targets | None, token: TokenWeight, sequence: SequenceWeight, vocab: int | None
) -> Batch:
    """Return the batch with ``weights`` (fp32 ``[rows, window]``), which weights of its own are multiplied into.

    :param targets: the teacher's; needed unless ``token`` is ``uniform``.
    :param vocab: ids below it are looked at; all when ``None``.
    """
    mask = counted(batch["labels"])
    weights = torch.zeros(batch["labels"].shape, dtype=torch.float32, device=mask.device)
    values = torch.ones(int(mask.sum()), dtype=torch.float32, device=mask.device)
    if "weights" in batch:
        values = values * batch["weights"][:, 1:][mask]
    if token != "uniform":
        assert targets is not None
        entropy = entropy_of(targets, vocab).float()
        values = values * (entropy if token == "teacher_entropy" else torch.exp(-entropy))
    if sequence == "sequences":
        of = documents(batch)[:, 1:][mask]
        sums = values.new_zeros(int(of.max()) + 1 if len(of) else 0).index_add(0, of, values)
        values = values / sums[of].clamp_min(_NOTHING)
    weights[:, 1:][mask] = values
    return {**batch, "weights": weights}


def documents(batch: Batch) -> Tensor:
    """Number of the document that each token is of, ``[rows, window]``; a row is one unless documents are packed."""
    labels = batch["labels"]
    begins = torch.zeros_like(labels)
    begins[:, 0] = 1
    if "position_ids" in batch:
        begins = torch.maximum(begins, (batch["position_ids"] == 0).to(begins.dtype))
    return begins.flatten().cumsum(0).view_as(labels) - 1


def entropy_of(targets: Targets, vocab: int | None) -> Tensor:
    """Entropy of each distribution in nats, ``[counted tokens]``.

    Of a top-k distribution the rest counts as one further token, which is a lower bound; of a sampled one it is
    estimated without bias.
    """
    if isinstance(targets, SparseTargets):
        known = -(targets.weights * targets.log_probs).sum(-1)
        if targets.kind == "sampled":
            return known
        rest = (1.0 - targets.weights.sum(-1)).clamp_min(0.0)
        return known - torch.xlogy(rest, rest)
    parts = [-(log_p.exp() * log_p).sum(-1) for log_p in log_probabilities(targets, vocab)]
    return torch.cat(parts) if parts else targets.hidden.new_zeros(0)
