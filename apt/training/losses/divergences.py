"""Divergences between a teacher's and a student's next-token distributions, with their gradients in closed form.

Each function takes log-probabilities ``log_p`` (teacher) and ``log_q`` (student) and the probabilities ``p`` and ``q``,
all ``[tokens, vocabulary]``, and returns the divergence per token (``[tokens]``, nats) and its gradient with respect to
the student's *logits*. It may overwrite ``log_p`` and ``log_q``, and returns the gradient in ``log_q``.

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


def forward_kl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ student)."""
    rows = log_p.sub_(log_q).mul_(p).sum(-1)
    return rows, torch.sub(q, p, out=log_q)


def reverse_kl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student ‖ teacher)."""
    difference = log_q.sub_(log_p)
    rows = torch.mul(q, difference, out=log_p).sum(-1)
    return rows, difference.sub_(rows[:, None]).mul_(q)


def jsd(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Jensen-Shannon divergence: the mean KL of both to their even mixture."""
    log_m = _log(torch.add(p, q).mul_(0.5))
    from_p = log_p.sub_(log_m).mul_(p).sum(-1)
    to_q = log_q.sub_(log_m)
    from_q = torch.mul(q, to_q, out=log_m).sum(-1)
    return 0.5 * (from_p + from_q), to_q.sub_(from_q[:, None]).mul_(q).mul_(0.5)


def skew_kl(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ mixture) with :data:`SKEW` of the teacher in the mixture."""
    mixture = torch.mul(q, 1.0 - SKEW).add_(p, alpha=SKEW).clamp_min_(torch.finfo(p.dtype).tiny)
    slope = torch.div(p, mixture, out=log_q).mul_(SKEW - 1.0)
    rows = log_p.sub_(mixture.log_()).mul_(p).sum(-1)
    return rows, _through_softmax(slope, q, log_p)


def tvd(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation distance: half the sum of absolute differences."""
    difference = torch.sub(q, p, out=log_q)
    rows = torch.abs(difference, out=log_p).sum(-1).mul_(0.5)
    return rows, _through_softmax(difference.sign_().mul_(0.5), q, log_p)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm that stays finite where a probability underflowed to zero."""
    return probabilities.clamp_min_(torch.finfo(probabilities.dtype).tiny).log_()


def _through_softmax(slope: Tensor, q: Tensor, spare: Tensor) -> Tensor:
    mean = torch.mul(slope, q, out=spare).sum(-1, keepdim=True)
    return slope.sub_(mean).mul_(q)


#: ``(log_p, log_q, p, q) -> (rows, slope)``.
Divergence = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

DIVERGENCES: Final[dict[str, Divergence]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "tvd": tvd,
}
