"""Loss and gradient of a few rows of logits, small enough to stay in the caches from the first pass to the last.

At a vocabulary of 150,000 one pass over a row is memory traffic and nothing else. Therefore a block of rows goes
through all its passes before the next one is touched, in buffers that are used again. Softmax in one call is faster
than its parts (7 GB/s against 4 GB/s on one core with AVX-512); every other pass costs a fifth of it or less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from apt.training.losses.divergences import DIVERGENCES
from apt.training.losses.sparse import over_buckets, over_sample
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


@dataclass(slots=True)
class Own:
    """The label's loss of each row, ``[rows]``, and its gradient ``factor * q - onehot * label``.

    :param nll: negative log-likelihood of the label.
    :param loss: with all that may be added to it.
    """

    softmax: Softmax
    nll: Tensor
    loss: Tensor
    factor: Tensor
    onehot: Tensor


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
        own = self._own(logits, targets)
        torch.mul(own.softmax.probabilities, own.factor[:, None], out=logits)
        self._take_labels(logits, targets, own, 1.0)
        return own.loss, self._sums(own)

    def dense(self, logits: Tensor, theirs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss per row against a whole distribution, and sums; ``logits`` become the gradient, ``theirs`` are lost.

        :param theirs: the teacher's logits ``[rows, its vocabulary]``.
        """
        terms, own = self._terms, self._own(logits, targets)
        sums = self._sums(own)
        sums[:, 4] = 1.0
        ours, both = self._shared(logits, own.softmax)
        if theirs.shape[1] != ours.shape[1]:
            theirs = self._copied("theirs", theirs[:, : ours.shape[1]])
        best = theirs.argmax(-1, keepdim=True)
        sums[:, 3] = ours.gather(1, best)[:, 0] >= both.largest_logit[:, 0]
        rows, slope = self._diverge(ours, theirs, both, sums)
        torch.mul(slope, terms.alpha * terms.temperature, out=logits[:, : slope.shape[1]])
        logits[:, slope.shape[1] :] = 0.0
        loss = terms.alpha * terms.temperature**2 * rows
        return self._with_own(loss, logits, targets, own), sums

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
        terms, own = self._terms, self._own(logits, targets)
        sums = self._sums(own)
        ours, both = self._shared(logits, own.softmax)
        log_q = ours.gather(1, known.ids)
        best = known.log_probs.argmax(-1, keepdim=True)
        sums[:, 3] = log_q.gather(1, best)[:, 0] >= both.largest_logit[:, 0]
        log_q.sub_(both.log_normaliser)
        sums[:, 4] = known.weights.sum(-1)
        # The student's logits are not read again: their place is where the gradient is made.
        gradient = logits[:, : ours.shape[1]]
        if known.kind == "sampled":
            rows = plain = over_sample(both.probabilities, log_q, known, gradient)
        else:
            rows, plain = over_buckets(both.probabilities, log_q, known, terms.divergence, gradient)
        sums[:, 1], sums[:, 2] = rows, plain
        gradient.mul_(terms.alpha)
        logits[:, ours.shape[1] :] = 0.0
        return self._with_own(terms.alpha * rows, logits, targets, own), sums

    def _shared(self, logits: Tensor, own: Softmax) -> tuple[Tensor, Softmax]:
        """The logits of the ids that are compared, and their distribution."""
        shared = self._terms.shared_vocab
        if shared is None or shared == logits.shape[1]:
            return logits, own
        ours = self._copied("ours", logits[:, :shared])
        return ours, self._softmax("q_shared", ours)

    def _with_own(self, loss: Tensor, gradient: Tensor, targets: Tensor, own: Own) -> Tensor:
        """Add the label's loss, by its share, to a loss per row and to its gradient."""
        share = 1.0 - self._terms.alpha
        if share == 0.0:
            return loss
        gradient.addcmul_(own.softmax.probabilities, own.factor[:, None], value=share)
        self._take_labels(gradient, targets, own, share)
        return loss + share * own.loss

    def _own(self, logits: Tensor, targets: Tensor) -> Own:
        terms, softmax = self._terms, self._softmax("q", logits)
        # Rounding takes no likelihood above one.
        nll = (softmax.log_normaliser - logits.gather(1, targets[:, None]))[:, 0].clamp_min_(0.0)
        loss, factor = nll, torch.ones_like(nll)
        if terms.label_smoothing:
            mean = logits.mean(-1) - softmax.log_normaliser[:, 0]
            loss = (1.0 - terms.label_smoothing) * nll - terms.label_smoothing * mean
        elif terms.focal_gamma:
            gamma, likely = terms.focal_gamma, (-nll).exp()
            # Exact where 1 - p would round to 0; of a label that is certain, a power below 0 must stay finite.
            other = (-torch.expm1(-nll)).clamp_min_(torch.finfo(nll.dtype).tiny)
            loss = other**gamma * nll
            factor = other**gamma + gamma * likely * other ** (gamma - 1.0) * nll
        onehot = (1.0 - terms.label_smoothing) * factor
        if terms.z_loss:
            normaliser = softmax.log_normaliser[:, 0]
            loss = loss + terms.z_loss * normaliser**2
            factor = factor + 2.0 * terms.z_loss * normaliser
        return Own(softmax, nll, loss, factor, onehot)

    def _take_labels(self, gradient: Tensor, targets: Tensor, own: Own, share: float) -> None:
        """Take the labels, smoothed or not, from a gradient that holds ``share * factor * q``."""
        gradient.scatter_add_(1, targets[:, None], (-share * own.onehot)[:, None])
        if self._terms.label_smoothing:
            gradient.sub_(share * self._terms.label_smoothing / gradient.shape[1])

    def _sums(self, own: Own) -> Tensor:
        sums = own.nll.new_zeros(len(own.nll), N_SUMS)
        sums[:, 0] = own.nll
        return sums

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


def rows_of(elements: int, vocabulary: int) -> int:
    """Return how many rows of a vocabulary make about so many elements."""
    return max(1, elements // vocabulary)
