"""Divergences from a teacher whose distribution is known at some ids only, with their gradients in closed form.

Both functions take the student's probabilities ``q`` (``[tokens, vocabulary]``), its log-probabilities ``log_q`` at the
known ids (``[tokens, k]``) and a place for the gradient with respect to the student's logits, of the shape of ``q``.
They return the divergence per token. Temperature is 1: what lies outside of the known ids has
another mass at any other temperature, and nothing that is known tells which.
"""

import torch
from torch import Tensor

from apt.training.losses.divergences import DIVERGENCES, forward_kl
from apt.training.teachers.contract import SparseTargets


def over_buckets(
    q: Tensor, log_q: Tensor, known: SparseTargets, divergence: str, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Divergence over the known ids and one bucket of all others.

    With ``s`` the gradient with respect to the logits of such ``k + 1`` outcomes, the gradient of a logit is ``s`` at a
    known id, and the bucket's ``s`` times the share of the bucket's probability that the student gives it elsewhere.
    It is a lower bound of the divergence over all ids, and the same where all are known.

    :returns: the divergence, and the forward KL over the same outcomes.
    """
    k, tiny = known.ids.shape[1], torch.finfo(q.dtype).tiny
    mass = known.weights.double().sum(-1, keepdim=True)
    if k == q.shape[1]:  # there are no others, and what is missing to 1 was lost on the way
        rest = torch.ones_like(log_q[:, :1])
        p_all, log_p = known.weights / mass.to(q.dtype), known.log_probs - mass.log().to(q.dtype)
        q_all = q.gather(1, known.ids)
    else:
        # 1 - sum(q at the known ids) would lose its digits where nearly all mass is known.
        rest = gradient.copy_(q).scatter_(1, known.ids, 0.0).sum(-1, keepdim=True).clamp_min_(tiny)
        others = (1.0 - mass).to(q.dtype).clamp_min_(tiny)
        p_all, log_p = torch.cat([known.weights, others], -1), torch.cat([known.log_probs, others.log()], -1)
        q_all, log_q = torch.cat([q.gather(1, known.ids), rest], -1), torch.cat([log_q, rest.log()], -1)
    if divergence == "forward_kl":
        rows, slope = forward_kl(log_p, log_q, p_all, q_all)
        plain = rows
    else:
        plain = forward_kl(log_p.clone(), log_q.clone(), p_all, q_all)[0]
        rows, slope = DIVERGENCES[divergence](log_p, log_q, p_all, q_all)
    gradient.mul_(slope[:, -1:] / rest).scatter_(1, known.ids, slope[:, :k])
    return rows, plain


def over_sample(q: Tensor, log_q: Tensor, known: SparseTargets, gradient: Tensor) -> Tensor:
    """Unbiased estimate of the forward KL, and of its gradient, from drawn ids: ``sum w (log p - log q)``.

    No other divergence is linear in the teacher's probabilities, so none has such an estimate. A single token's
    estimate can be below zero.
    """
    torch.mul(q, known.weights.sum(-1, keepdim=True), out=gradient)
    gradient.scatter_add_(1, known.ids, -known.weights)
    return (known.weights * (known.log_probs - log_q)).sum(-1)
