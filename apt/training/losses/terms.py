"""What a loss per token is made of, and the sums that come out of it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss per token: ``alpha * T² * divergence(teacher, student; T) + (1 - alpha) * own``.

    ``own`` is the cross-entropy on the label, against smoothed labels, times ``(1 - p)^focal_gamma``, plus
    ``z_loss * logsumexp(logits)²``. ``T²`` keeps the size of the gradient independent of the temperature (Hinton
    et al., arXiv 1503.02531).

    :param shared_vocab: the divergence compares ids below it, both distributions renormalised; ``None`` for all.
    :param focal_gamma: of the focal loss (Lin et al., arXiv 1708.02002).
    :param z_loss: weight of the squared log-normaliser (PaLM, arXiv 2204.02311, section 5).
    """

    alpha: float = 0.0
    temperature: float = 1.0
    divergence: str = "forward_kl"
    label_smoothing: float = 0.0
    shared_vocab: int | None = None
    focal_gamma: float = 0.0
    z_loss: float = 0.0


@dataclass(slots=True)
class Sums:
    """Sums over the counted tokens, each times its weight, as float64 scalars.

    :param cross_entropy: negative log-likelihood of the labels, without smoothing or other terms.
    :param divergence: what is trained on, without ``alpha`` and ``T²``.
    :param forward_kl: KL(teacher ‖ student) at temperature 1; of sparse targets over the known ids and the rest.
    :param agreeing: tokens whose likeliest id is the same for teacher and student.
    :param teacher_mass: probability that the targets know of; 1 for a whole distribution.
    """

    cross_entropy: Tensor
    divergence: Tensor
    forward_kl: Tensor
    agreeing: Tensor
    teacher_mass: Tensor
