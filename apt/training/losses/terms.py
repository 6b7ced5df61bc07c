"""What a loss per token is made of, and the sums that come out of it."""

from dataclasses import dataclass

from torch import Tensor

from apt.console.errors import UsageError


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

    def __post_init__(self) -> None:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("the focal loss is of the label alone, without smoothing")

    def refuse_unknowable(self, kind: str) -> None:
        """Refuse what cannot be computed from a distribution that is known at some ids only.

        :param kind: of :class:`apt.training.teachers.contract.SparseTargets`.
        :raises UsageError: for a temperature, because the mass outside of the known ids at another temperature is
            unknown; for a divergence from a sample, because only the forward KL is linear in what is sampled.
        """
        if self.temperature != 1.0:
            raise UsageError("a distribution that is known at some ids only is compared at temperature 1")
        if kind == "sampled" and self.divergence != "forward_kl":
            raise UsageError(f"an unbiased sample estimates forward_kl, not {self.divergence}")


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
