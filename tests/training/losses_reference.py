"""The losses by their definitions, over all logits at once in float64, differentiated by autograd."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from apt.training.contract import counted, token_weights
from apt.training.losses.divergences import SKEW
from apt.training.losses.terms import Terms
from apt.training.teachers.contract import SparseTargets


def naive_divergence(name: str, p: Tensor, q: Tensor) -> Tensor:
    """The definitions, on probabilities ``[tokens, outcomes]``; per token."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        return 0.5 * kl(p, 0.5 * (p + q)) + 0.5 * kl(q, 0.5 * (p + q))
    if name == "skew_kl":
        return kl(p, SKEW * p + (1 - SKEW) * q)
    return 0.5 * (p - q).abs().sum(-1)


def naive_own(logits: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """Cross-entropy with all that may be added to it; per token."""
    log_q = logits.log_softmax(-1)
    nll = -log_q.gather(1, targets[:, None])[:, 0]
    rows = (1 - terms.label_smoothing) * nll - terms.label_smoothing * log_q.mean(-1)
    if terms.focal_gamma:
        rows = (1 - (-nll).exp()) ** terms.focal_gamma * nll
    return rows + terms.z_loss * logits.logsumexp(-1) ** 2


def naive_loss(
    ours: Tensor,
    theirs: Tensor | None,
    targets: Tensor,
    terms: Terms,
    *,
    known: SparseTargets | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The summed loss of logits ``[tokens, vocabulary]``.

    :param known: what is known of the teacher where that is not all; ``theirs`` is not read then.
    """
    rows = (1 - terms.alpha) * naive_own(ours, targets, terms)
    if terms.alpha:
        q = (ours[:, : terms.shared_vocab] / terms.temperature).softmax(-1)
        if known is None:
            assert theirs is not None
            p = (theirs[:, : terms.shared_vocab] / terms.temperature).softmax(-1)
            found = naive_divergence(terms.divergence, p, q)
        elif known.kind == "sampled":
            found = (known.weights.double() * (known.log_probs.double() - q.gather(1, known.ids).log())).sum(-1)
        else:
            p = known.weights.double()
            if known.ids.shape[1] == q.shape[1]:  # there are no others
                found = naive_divergence(terms.divergence, p / p.sum(-1, keepdim=True), q.gather(1, known.ids))
            else:
                p = torch.cat([p, 1.0 - p.sum(-1, keepdim=True)], -1)
                found = naive_divergence(terms.divergence, p, buckets(q, known.ids))
        rows = rows + terms.alpha * terms.temperature**2 * found
    return (rows if weights is None else rows * weights.double()).sum()


def buckets(probabilities: Tensor, ids: Tensor) -> Tensor:
    """Probabilities of some ids, and of all others together."""
    others = probabilities.scatter(1, ids, 0.0).sum(-1, keepdim=True)
    return torch.cat([probabilities.gather(1, ids), others], -1)


def all_logits(model: Any, batch: Any) -> Tensor:
    """Logits ``[counted tokens, vocabulary]`` of a model with all that its head may have."""
    states = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(states[counted(batch["labels"])])
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def in_float64(
    student: Any, teacher: Any, batch: Any, terms: Terms, known: SparseTargets | None
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of copies of the models in float64."""
    ours, theirs = (copy.deepcopy(m).double() for m in (student, teacher))
    with torch.no_grad():
        goal = all_logits(theirs, batch)
    targets = batch["labels"][:, 1:][counted(batch["labels"])]
    loss = naive_loss(all_logits(ours, batch), goal, targets, terms, known=known, weights=token_weights(batch))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}


def widen_head(model: Any, *, bias: bool = False, softcap: float | None = None) -> Any:
    """Give a model's head a bias, or its logits a cap, and logits of some nats.

    Of more nats, tied heads would be so sure of the token before that fp32 softmax itself loses the digits.
    """
    generator = torch.Generator().manual_seed(11)
    head = model.lm_head
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.2)
        if bias:
            head.bias = nn.Parameter(torch.randn(len(head.weight), generator=generator))
    if softcap is not None:
        model.config.final_logit_softcapping = softcap
    return model
