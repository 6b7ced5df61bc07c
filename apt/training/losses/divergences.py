"""Divergences between a teacher's and a student's next-token distributions, with their gradients in closed form.

Each function takes log-probabilities ``log_p`` (teacher) and ``log_q`` (student), both ``[tokens, vocabulary]``, and
returns the divergence per token (``[tokens]``, nats) and its gradient with respect to the student's *logits*.

With ``q = softmax(z)`` and ``g = dD/dq``, the gradient is ``q * (g - sum(q * g))``. It is zero for equal
distributions in every case here.
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "tvd"]

#: Share of the teacher in the mixture of ``skew_kl`` (DistiLLM, arXiv 2402.03898, section 3.1).
SKEW: Final = 0.1


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ student)."""
    p = log_p.exp()
    rows = (log_p - log_q).mul_(p).sum(-1)
    return rows, log_q.exp().sub_(p)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student ‖ teacher)."""
    q = log_q.exp()
    difference = log_q - log_p
    rows = (q * difference).sum(-1)
    return rows, difference.sub_(rows[:, None]).mul_(q)


def jsd(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Jensen-Shannon divergence: the mean KL of both to their even mixture."""
    p, q = log_p.exp(), log_q.exp()
    log_m = _log(p.add(q).mul_(0.5))
    to_q = log_q - log_m
    from_q = (q * to_q).sum(-1)
    from_p = (log_p - log_m).mul_(p).sum(-1)
    return 0.5 * (from_p + from_q), to_q.sub_(from_q[:, None]).mul_(q).mul_(0.5)


def skew_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ mixture) with :data:`SKEW` of the teacher in the mixture."""
    p, q = log_p.exp(), log_q.exp()
    mixture = (SKEW * p).add_(q, alpha=1.0 - SKEW)
    rows = (log_p - _log(mixture)).mul_(p).sum(-1)
    slope = p.div_(mixture.clamp_min_(torch.finfo(p.dtype).tiny)).mul_(SKEW - 1.0)
    return rows, _through_softmax(slope, q)


def tvd(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation distance: half the sum of absolute differences."""
    q = log_q.exp()
    difference = q - log_p.exp()
    rows = 0.5 * difference.abs().sum(-1)
    return rows, _through_softmax(difference.sign_().mul_(0.5), q)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm that stays finite where a probability underflowed to zero."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log_()


def _through_softmax(slope: Tensor, q: Tensor) -> Tensor:
    return slope.sub_((slope * q).sum(-1, keepdim=True)).mul_(q)


DIVERGENCES: Final[dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "tvd": tvd,
}
