"""What a teacher gives: the targets of a batch's counted tokens, from a model in memory or from what it once said."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from apt.training.contract import Batch
from apt.training.forward import Body
from apt.training.losses.head import Head


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """The whole distribution, not yet multiplied out: logits are ``head.logits(hidden)``.

    :param hidden: ``[counted tokens, teacher hidden]``.
    """

    hidden: Tensor
    head: Head


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """A distribution at temperature 1, known at some ids only.

    :param ids: int64 ``[counted tokens, k]``; of ``top_k``, no id comes twice in a row.
    :param weights: fp32 ``[counted tokens, k]``. ``top_k``: the probabilities of the ``k`` likeliest ids; the rest of
        the mass lies on all other ids together. ``sampled``: one over the number of draws for each draw: an unbiased
        estimate of the whole distribution (Sparse Logit Sampling, ACL 2025, section 3).
    :param log_probs: fp32 ``[counted tokens, k]``: the teacher's log-probabilities of the ids.
    """

    ids: Tensor
    weights: Tensor
    log_probs: Tensor
    kind: Literal["top_k", "sampled"] = "top_k"


Targets = DenseTargets | SparseTargets


class Teacher(Protocol):
    """Made by a component of kind ``teacher`` from ``(options, resources)``."""

    #: What :meth:`body` can give beside hidden states; a teacher on disk gives nothing.
    offers: frozenset[str]

    def targets(self, batch: Batch, *, rng: Any = None, body: Body | None = None) -> Targets:
        """Return the next-token distributions of the counted tokens.

        :param body: what :meth:`body` gave for the batch, where it was asked; given only to those that offer states.
        """
        ...

    def body(self, batch: Batch, wanted: frozenset[str]) -> Body:
        """Return the inner states of a batch (see :func:`apt.training.forward.run_body`)."""
        ...
