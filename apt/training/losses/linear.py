"""Losses on the logits of a linear head without ever holding all logits.

Logits of ``rows × window × vocabulary`` are by far the largest tensor of a training step. Here they exist for a few
hundred tokens at a time: a chunk's logits, its loss and its gradient are computed in the forward pass and reduced at
once to the gradients of the hidden states and the head (the scheme of Liger's fused linear losses, arXiv 2410.10989).
The teacher's logits are made in the same chunks.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from apt.training.losses.divergences import DIVERGENCES, forward_kl
from apt.training.losses.head import Head
from apt.training.teachers.contract import DenseTargets, Targets

#: Logits held at a time (elements); large enough for full-speed GEMMs, small enough to stay near the caches.
CHUNK_ELEMENTS: Final = 1 << 21
MIN_CHUNK_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss per token: ``alpha * T² * divergence(teacher, student; T) + (1 - alpha) * cross-entropy``.

    ``T²`` keeps the size of the gradient independent of the temperature (Hinton et al., arXiv 1503.02531).
    ``shared_vocab``: the divergence compares ids below it, both distributions renormalised; ``None`` for all.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    divergence: str = "forward_kl"
    label_smoothing: float = 0.0
    shared_vocab: int | None = None


@dataclass(slots=True)
class Sums:
    """Sums over the counted tokens, as float64 scalars."""

    cross_entropy: Tensor
    divergence: Tensor
    forward_kl: Tensor
    agreeing: Tensor


def linear_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    terms: Terms,
    teacher: Targets | None = None,
    *,
    weights: Tensor | None = None,
) -> tuple[Tensor, Sums]:
    """Return the summed loss over tokens (differentiable) and the sums that metrics are made of.

    :param hidden: ``[tokens, hidden]``.
    :param targets: token ids ``[tokens]``.
    :param teacher: needed when ``terms.alpha`` is above zero.
    :param weights: of the tokens, ``[tokens]``; one each when absent. All sums are weighted.
    """
    if weights is not None or not (teacher is None or isinstance(teacher, DenseTargets)):
        raise NotImplementedError
    task = _Task(head, targets, terms, teacher, torch.is_grad_enabled(), _matmul_dtype(hidden))
    loss, sums = _LinearLoss.apply(hidden, head.weight, head.bias, task)  # type: ignore[no-untyped-call]
    return loss, Sums(*sums)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that the surrounding autocast wants for matrix products; else the hidden states' own."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


@dataclass(frozen=True, slots=True)
class _Task:
    head: Head
    targets: Tensor
    terms: Terms
    teacher: DenseTargets | None
    wants_gradient: bool
    matmul_dtype: torch.dtype


class _LinearLoss(torch.autograd.Function):
    """Forward computes the gradients too; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            loss, sums, gradients = _run(hidden, weight, bias, task, ctx.needs_input_grad)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        scale = outputs[0]
        hidden, weight, bias = (None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = (None, None, None)
        return hidden, weight, bias, None


_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task, needed: tuple[bool, ...]
) -> tuple[Tensor, Tensor, _Gradients]:
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    narrow_weight = weight.to(task.matmul_dtype)
    needs = [task.wants_gradient and n for n in needed[:3]]
    d_hidden = torch.empty_like(hidden) if needs[0] else None
    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs[1] else None
    d_bias = torch.zeros_like(bias) if needs[2] and bias is not None else None
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    sums = torch.zeros(4, dtype=torch.float64, device=hidden.device)
    step = max(MIN_CHUNK_TOKENS, CHUNK_ELEMENTS // vocabulary)
    for begin in range(0, tokens, step):
        part = slice(begin, min(begin + step, tokens))
        rows = hidden[part].to(task.matmul_dtype)
        logits = task.head.logits(rows, narrow_weight)
        chunk_loss, chunk_sums, d_logits = _chunk(logits, task, part)
        loss += chunk_loss
        sums += chunk_sums
        if not any(needs):
            continue
        if task.head.softcap is not None:
            d_logits.mul_(1.0 - (logits / task.head.softcap) ** 2)
        narrow = d_logits.to(task.matmul_dtype)
        if d_hidden is not None:
            d_hidden[part] = narrow @ narrow_weight
        if d_weight is not None:
            d_weight += narrow.T @ rows
        if d_bias is not None:
            d_bias += d_logits.sum(0).to(d_bias.dtype)
    if d_weight is not None:
        d_weight = d_weight.to(weight.dtype)
    return loss.to(wide), sums, (d_hidden, d_weight, d_bias)


def _chunk(logits: Tensor, task: _Task, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (float64 scalar), sums ``[4]`` and gradient ``[tokens, vocabulary]`` of one chunk."""
    terms, targets = task.terms, task.targets[part]
    log_q = torch.log_softmax(logits, -1)
    nll = -log_q.gather(1, targets[:, None])[:, 0]
    gradient = torch.zeros_like(log_q)
    ce_rows = nll
    if terms.alpha < 1.0 and (task.wants_gradient or terms.label_smoothing):
        ce_rows = _cross_entropy(log_q, nll, targets, terms, gradient)
    # Reduced per row in fp32, then over rows in fp64: one fp32 sum over all of a chunk loses five digits.
    loss = (1.0 - terms.alpha) * ce_rows.double().sum()
    sums = torch.zeros(4, dtype=torch.float64, device=logits.device)
    sums[0] = nll.double().sum()
    if task.teacher is not None:
        rows, compared = _compare(logits, log_q, task, task.teacher, part, gradient)
        loss = loss + terms.alpha * terms.temperature**2 * rows.double().sum()
        sums[1] = rows.double().sum()
        sums[2:] = compared
    return loss, sums, gradient


def _cross_entropy(log_q: Tensor, nll: Tensor, targets: Tensor, terms: Terms, gradient: Tensor) -> Tensor:
    """Cross-entropy per token; its gradient times ``1 - alpha`` is written to ``gradient``."""
    smoothing = terms.label_smoothing
    torch.exp(log_q, out=gradient)
    gradient.scatter_add_(1, targets[:, None], torch.full_like(nll, smoothing - 1.0)[:, None])
    rows = nll
    if smoothing:
        gradient.sub_(smoothing / log_q.shape[1])
        rows = (1.0 - smoothing) * nll - smoothing * log_q.mean(-1)
    gradient.mul_(1.0 - terms.alpha)
    return rows


def _compare(
    logits: Tensor, log_q: Tensor, task: _Task, teacher: DenseTargets, part: slice, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Divergence per token, and ``[forward KL at temperature 1, agreeing argmax]`` summed over the chunk."""
    terms, shared = task.terms, task.terms.shared_vocab
    theirs = teacher.head.logits(teacher.hidden[part].to(teacher.head.weight.dtype), teacher.head.weight)
    ours = logits[:, :shared]
    theirs = theirs[:, :shared].to(ours.dtype)
    best = theirs.argmax(-1, keepdim=True)
    agreeing = (ours.gather(1, best)[:, 0] >= ours.amax(-1)).sum()
    whole = shared is None or shared == logits.shape[1]
    log_q1 = log_q if whole else torch.log_softmax(ours, -1)
    log_p1 = torch.log_softmax(theirs, -1)
    hot = terms.temperature
    log_p, log_q_hot = (log_p1, log_q1) if hot == 1.0 else (
        torch.log_softmax(theirs / hot, -1), torch.log_softmax(ours / hot, -1)
    )  # fmt: skip
    rows, slope = DIVERGENCES[terms.divergence](log_p, log_q_hot)
    gradient[:, :shared].add_(slope, alpha=terms.alpha * hot)
    known = hot == 1.0 and terms.divergence == "forward_kl"
    plain = rows if known else forward_kl(log_p1, log_q1)[0]
    return rows, torch.stack([plain.double().sum(), agreeing.double()])


def token_nll(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token, ``[tokens]``, nats; without gradient.

    :param hidden: ``[tokens, hidden]``.
    :param targets: token ids ``[tokens]``.
    """
    dtype = _matmul_dtype(hidden)
    weight = head.weight.to(dtype)
    step = max(MIN_CHUNK_TOKENS, CHUNK_ELEMENTS // weight.shape[0])
    parts = []
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for begin in range(0, len(targets), step):
            ids = targets[begin : begin + step]
            logits = head.logits(hidden[begin : begin + step].to(dtype), weight)
            parts.append(torch.logsumexp(logits, -1) - logits.gather(1, ids[:, None])[:, 0])
    return torch.cat(parts) if parts else hidden.new_zeros(0)
