"""Loss and gradient of a few rows of logits, small enough to stay in the caches from the first pass to the last.

At a vocabulary of 150,000 one pass over a row is memory traffic and nothing else. Therefore a block of rows goes
through all its passes before the next one is touched, in buffers that are used again. Softmax in one call is faster
than its parts (7 GB/s against 4 GB/s on one core with AVX-512); every other pass costs a fifth of it or less.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from apt.training.losses.divergences import DIVERGENCES, forward_kl
from apt.training.losses.terms import Terms
from apt.training.teachers.contract import SparseTargets

#: ``[cross-entropy, divergence, forward KL, agreeing, teacher's mass]`` of each row.
N_SUMS = 5


@dataclass(slots=True)
class Softmax:
    """Probabilities ``[rows, vocabulary]``; logarithm of the normaliser and largest logit, ``[rows, 1]``."""

    probabilities: Tensor
    log_normaliser: Tensor
    largest_logit: Tensor


class Blocks:
    """Works on blocks of at most ``rows`` rows; the buffers live as long as the object.

    :param vocabulary: width of the student's logits.
    """

    def __init__(self, terms: Terms, rows: int, vocabulary: int, *, like: Tensor) -> None:
        self._terms = terms
        self._shape = (rows, vocabulary)
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def own(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss per row without a teacher, and sums ``[rows, 5]``; ``logits`` become the gradient."""
        found = self._softmax("q", logits)
        nll = found.log_normaliser[:, 0] - logits.gather(1, targets[:, None])[:, 0]
        sums = logits.new_zeros(len(logits), N_SUMS)
        sums[:, 0] = nll
        rows, factor, spread = self._own_rows(logits, nll, found)
        torch.mul(found.probabilities, factor[:, None], out=logits)
        self._finish_own(logits, targets, nll, spread, 1.0)
        return rows, sums

    def dense(self, logits: Tensor, theirs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss per row against a whole distribution, and sums; ``logits`` become the gradient, ``theirs`` are lost.

        :param theirs: the teacher's logits ``[rows, its vocabulary]``.
        """
        terms, shared = self._terms, self._terms.shared_vocab
        own = self._softmax("q", logits)
        nll = own.log_normaliser[:, 0] - logits.gather(1, targets[:, None])[:, 0]
        own_rows, factor, spread = self._own_rows(logits, nll, own)
        sums = logits.new_zeros(len(logits), N_SUMS)
        sums[:, 0], sums[:, 4] = nll, 1.0
        whole = shared is None or shared == logits.shape[1] == theirs.shape[1]
        ours = logits if whole else self._copied("ours", logits[:, :shared])
        theirs = theirs if whole else self._copied("theirs", theirs[:, :shared])
        both = own if whole else self._softmax("q_shared", ours)
        best = theirs.argmax(-1, keepdim=True)
        sums[:, 3] = ours.gather(1, best)[:, 0] >= both.largest_logit[:, 0]
        rows, slope = self._diverge(ours, theirs, both, sums)
        scale = terms.alpha * terms.temperature
        if whole:
            torch.mul(slope, scale, out=logits)
        else:
            logits.zero_()
            logits[:, :shared].add_(slope, alpha=scale)
        loss = terms.alpha * terms.temperature**2 * rows
        if terms.alpha < 1.0:
            logits.addcmul_(own.probabilities, factor[:, None], value=1.0 - terms.alpha)
            self._finish_own(logits, targets, nll, spread, 1.0 - terms.alpha)
            loss = loss + (1.0 - terms.alpha) * own_rows
        return loss, sums

    def _diverge(self, ours: Tensor, theirs: Tensor, both: Softmax, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence per row and its slope; overwrites its logits."""
        terms, hot = self._terms, self._terms.temperature
        known = terms.divergence == "forward_kl"
        hot_ours, hot_theirs = ours, theirs
        if hot != 1.0:
            hot_ours = torch.mul(ours, 1.0 / hot, out=self._buffer("hot_ours", ours))
            hot_theirs = torch.mul(theirs, 1.0 / hot, out=self._buffer("hot_theirs", theirs))
        teacher = self._softmax("p", theirs)
        if hot != 1.0 or not known:
            # KL at temperature 1 for the metric: sum p (t - s) less the difference of the normalisers.
            spare = torch.sub(theirs, ours, out=self._buffer("spare", ours)).mul_(teacher.probabilities)
            sums[:, 2] = spare.sum(-1) - (teacher.log_normaliser - both.log_normaliser)[:, 0]
        if hot != 1.0:
            teacher, both = self._softmax("p", hot_theirs), self._softmax("q_hot", hot_ours)
        log_p = hot_theirs.sub_(teacher.log_normaliser)
        log_q = hot_ours.sub_(both.log_normaliser)
        rows, slope = DIVERGENCES[terms.divergence](log_p, log_q, teacher.probabilities, both.probabilities)
        sums[:, 1] = rows
        if hot == 1.0 and known:
            sums[:, 2] = rows
        return rows, slope

    def sparse(self, logits: Tensor, targets: Tensor, known: SparseTargets) -> tuple[Tensor, Tensor]:
        """Loss per row against a distribution that is known at some ids, and sums; ``logits`` become the gradient."""
        terms = self._terms
        own = self._softmax("q", logits)
        nll = own.log_normaliser[:, 0] - logits.gather(1, targets[:, None])[:, 0]
        own_rows, factor, spread = self._own_rows(logits, nll, own)
        sums = logits.new_zeros(len(logits), N_SUMS)
        sums[:, 0] = nll
        log_q = logits.gather(1, known.ids).sub_(own.log_normaliser)
        best = known.ids.gather(1, known.log_probs.argmax(-1, keepdim=True))
        sums[:, 3] = logits.gather(1, best)[:, 0] >= own.largest_logit[:, 0]
        if known.kind == "sampled":
            rows = (known.weights * (known.log_probs - log_q)).sum(-1)
            mass = known.weights.sum(-1)
            sums[:, 1] = sums[:, 2] = rows
            sums[:, 4] = mass
            torch.mul(own.probabilities, (terms.alpha * mass)[:, None], out=logits)
            logits.scatter_add_(1, known.ids, -terms.alpha * known.weights)
        else:
            rows, share, slope = _buckets(own.probabilities, log_q, known, terms, sums)
            torch.mul(own.probabilities, (terms.alpha * share)[:, None], out=logits)
            logits.scatter_(1, known.ids, terms.alpha * slope)
        loss = terms.alpha * rows
        if terms.alpha < 1.0:
            logits.addcmul_(own.probabilities, factor[:, None], value=1.0 - terms.alpha)
            self._finish_own(logits, targets, nll, spread, 1.0 - terms.alpha)
            loss = loss + (1.0 - terms.alpha) * own_rows
        return loss, sums

    def _own_rows(self, logits: Tensor, nll: Tensor, found: Softmax) -> tuple[Tensor, Tensor, Tensor]:
        """Own loss per row, the factor of ``q`` in its gradient, and the factor of the label's one-hot vector."""
        terms = self._terms
        rows, factor = nll, torch.ones_like(nll)
        if terms.label_smoothing:
            mean = logits.mean(-1) - found.log_normaliser[:, 0]
            rows = (1.0 - terms.label_smoothing) * nll - terms.label_smoothing * mean
        elif terms.focal_gamma:
            likely = (-nll).exp()
            other = (1.0 - likely).clamp_min_(torch.finfo(nll.dtype).tiny)
            gamma = terms.focal_gamma
            rows = other**gamma * nll
            factor = other**gamma + gamma * likely * other ** (gamma - 1.0) * nll
        onehot = factor
        if terms.z_loss:
            normaliser = found.log_normaliser[:, 0]
            rows = rows + terms.z_loss * normaliser**2
            factor = factor + 2.0 * terms.z_loss * normaliser
        return rows, factor, onehot

    def _finish_own(self, gradient: Tensor, targets: Tensor, nll: Tensor, onehot: Tensor, share: float) -> None:
        """Take the labels from a gradient that holds ``share * factor * q``."""
        smoothing = self._terms.label_smoothing
        gradient.scatter_add_(1, targets[:, None], (-(1.0 - smoothing) * share * onehot)[:, None])
        if smoothing:
            gradient.sub_(share * smoothing / gradient.shape[1])

    def _softmax(self, name: str, logits: Tensor) -> Softmax:
        """Probabilities in the buffer of that name. The normaliser follows from the likeliest entry, exactly enough."""
        out = self._buffer(name, logits)
        torch.ops.aten._softmax.out(logits, -1, False, out=out)
        largest = logits.amax(-1, keepdim=True)
        return Softmax(out, largest - out.amax(-1, keepdim=True).log(), largest)

    def _copied(self, name: str, part: Tensor) -> Tensor:
        return self._buffer(name, part).copy_(part)

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        held = self._buffers.get(name)
        if held is None or held.shape[1] != like.shape[1]:
            held = torch.empty(self._shape[0], like.shape[1], dtype=self._like.dtype, device=self._like.device)
            self._buffers[name] = held
        return held[: len(like)]


def _buckets(
    q: Tensor, log_q: Tensor, known: SparseTargets, terms: Terms, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence over the known ids and one bucket of all others.

    :returns: rows; the factor of ``q`` in the gradient at every other id; the gradient at the known ids.
    """
    tiny = torch.finfo(q.dtype).tiny
    q_known = q.gather(1, known.ids)
    mass = known.weights.sum(-1, keepdim=True)
    sums[:, 4] = mass[:, 0]
    if known.ids.shape[1] == q.shape[1]:  # there are no others
        p, log_p, rest = known.weights / mass, known.log_probs - mass.log(), torch.ones_like(mass)
    else:
        # 1 - sum(q) would lose its digits where nearly all mass is known.
        rest = q.scatter(1, known.ids, 0.0).sum(-1, keepdim=True).clamp_min_(tiny)
        p = torch.cat([known.weights, (1.0 - mass).clamp_min_(tiny)], -1)
        log_p = torch.cat([known.log_probs, p[:, -1:].log()], -1)
        q_known, log_q = torch.cat([q_known, rest], -1), torch.cat([log_q, rest.log()], -1)
    sums[:, 2] = forward_kl(log_p.clone(), log_q.clone(), p, q_known)[0]
    rows, slope = DIVERGENCES[terms.divergence](log_p, log_q, p, q_known)
    sums[:, 1] = rows
    return rows, slope[:, -1] / rest[:, 0], slope[:, : known.ids.shape[1]]


def rows_of(elements: int, vocabulary: int) -> int:
    """Return how many rows of a vocabulary make about so many elements."""
    return max(1, math.floor(elements / vocabulary))
