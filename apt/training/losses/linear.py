"""Losses on the logits of a linear head without ever holding all logits.

Logits of ``rows × window × vocabulary`` are by far the largest tensor of a training step. Here they exist for a
hundred tokens at a time: a chunk's logits, its loss and its gradient are computed in the forward pass and reduced at
once to the gradients of the hidden states and the head (the scheme of Liger's fused linear losses, arXiv 2410.10989).
Each head is multiplied once. The teacher's logits are made in the same chunks.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from apt.training.losses.blocks import N_SUMS, Blocks, rows_of
from apt.training.losses.head import Head
from apt.training.losses.terms import Sums, Terms
from apt.training.teachers.contract import DenseTargets, SparseTargets, Targets

#: Logits held at a time, in elements: matrix products of so many rows run at full speed.
CHUNK_ELEMENTS: Final = 1 << 24
MIN_CHUNK_TOKENS: Final = 64
#: The same on a GPU, where each product of so few rows would be a wait for the head's weights.
GPU_CHUNK_ELEMENTS: Final = 1 << 26
#: Logits that go through all passes together, in elements: four buffers of them fit in a core's caches.
BLOCK_ELEMENTS: Final = 1 << 19


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
    :raises UsageError: when the targets are known in part and cannot be compared as the terms say.
    """
    if isinstance(teacher, SparseTargets):
        terms.refuse_unknowable(teacher.kind)
    elif teacher is None and terms.alpha > 0.0:
        raise ValueError("a divergence has a weight and no teacher")
    task = _Task(head, targets, terms, teacher, weights, torch.is_grad_enabled(), _matmul_dtype(hidden))
    loss, sums = _LinearLoss.apply(hidden, head.weight, head.bias, task)  # type: ignore[no-untyped-call]
    return loss, Sums(*sums)


def token_nll(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token, ``[tokens]``, nats; without gradient.

    :param hidden: ``[tokens, hidden]``.
    :param targets: token ids ``[tokens]``.
    """
    dtype = _matmul_dtype(hidden)
    weight = head.weight.to(dtype)
    step = chunk_tokens(weight)
    parts = []
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for begin in range(0, len(targets), step):
            ids = targets[begin : begin + step]
            logits = head.logits(hidden[begin : begin + step].to(dtype), weight)
            parts.append(torch.logsumexp(logits, -1) - logits.gather(1, ids[:, None])[:, 0])
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def chunk_tokens(weight: Tensor) -> int:
    """Return of how many tokens the logits of a head ``[vocabulary, hidden]`` are held at a time."""
    elements = GPU_CHUNK_ELEMENTS if weight.is_cuda else CHUNK_ELEMENTS
    return max(MIN_CHUNK_TOKENS, elements // weight.shape[0])


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
    teacher: Targets | None
    weights: Tensor | None
    wants_gradient: bool
    matmul_dtype: torch.dtype


class _LinearLoss(torch.autograd.Function):
    """Forward computes the gradients too; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task) -> tuple[Tensor, Tensor]:
        needed = [task.wants_gradient and n for n in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            run = _Run(hidden, weight, bias, task, needed)
            run.chunks()
        # Summed over chunks in the wide dtype: a sum of many chunks in bf16 stops growing.
        d_weight = None if run.d_weight is None else run.d_weight.to(weight.dtype)
        d_bias = None if run.d_bias is None or bias is None else run.d_bias.to(bias.dtype)
        ctx.gradients = (run.d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(run.sums)
        return run.loss.to(run.wide), run.sums

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        scale = outputs[0]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a linear loss can be taken once: they are scaled where they lie")
        hidden, weight, bias = (None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None
        return hidden, weight, bias, None


class _Run:
    """One pass over all tokens, chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task, needed: list[bool]) -> None:
        self._hidden, self._task, self._bias = hidden, task, bias
        self.wide = wide = torch.promote_types(hidden.dtype, torch.float32)
        self._weight = weight.to(task.matmul_dtype)
        self._needs_gradient = any(needed)
        self.d_hidden = torch.zeros_like(hidden) if needed[0] else None
        self.d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needed[1] else None
        self.d_bias = (
            torch.zeros(bias.shape, dtype=wide, device=bias.device) if needed[2] and bias is not None else None
        )
        self.loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        self.sums = torch.zeros(N_SUMS, dtype=torch.float64, device=hidden.device)
        self._step = chunk_tokens(weight)
        # A GPU wants large kernels and has no cache to stay in.
        block = self._step if hidden.is_cuda else min(self._step, rows_of(BLOCK_ELEMENTS, weight.shape[0]))
        self._block_rows = block
        like = torch.empty(0, dtype=self.wide, device=hidden.device)
        self._blocks = Blocks(task.terms, block, weight.shape[0], like=like)
        self._logits: Tensor | None = None
        self._theirs: Tensor | None = None
        self._narrow: dict[torch.dtype, Tensor] = {}

    def chunks(self) -> None:
        """Go over all tokens."""
        for begin in range(0, len(self._hidden), self._step):
            self._chunk(slice(begin, min(begin + self._step, len(self._hidden))))

    def _chunk(self, part: slice) -> None:
        task, head = self._task, self._task.head
        rows = self._hidden[part].to(task.matmul_dtype)
        self._logits = logits = self._product(rows, self._weight, self._logits)
        head.finish(logits, self._bias)
        capped = logits.clone() if head.softcap is not None and self._needs_gradient else None
        theirs = self._teacher_logits(part)
        for begin in range(0, len(logits), self._block_rows):
            self._block(logits, theirs, part.start, slice(begin, min(begin + self._block_rows, len(logits))))
        if self._needs_gradient:
            if capped is not None and head.softcap is not None:
                logits.mul_(capped.div_(head.softcap).square_().neg_().add_(1.0))
            self._reduce(logits, rows, part)

    def _teacher_logits(self, part: slice) -> Tensor | None:
        teacher = self._task.teacher
        if not isinstance(teacher, DenseTargets):
            return None
        weight = teacher.head.weight
        self._theirs = theirs = self._product(teacher.hidden[part].to(weight.dtype), weight, self._theirs)
        teacher.head.finish(theirs, teacher.head.bias)
        return theirs

    def _block(self, logits: Tensor, theirs: Tensor | None, offset: int, rows: slice) -> None:
        """Turn a block of logits into its gradient, and add its loss and sums."""
        task = self._task
        whole = slice(offset + rows.start, offset + rows.stop)
        targets = task.targets[whole]
        if theirs is not None:
            loss, sums = self._blocks.dense(logits[rows], theirs[rows], targets)
        elif isinstance(task.teacher, SparseTargets):
            known = SparseTargets(
                task.teacher.ids[whole],
                task.teacher.weights[whole].to(self.wide),
                task.teacher.log_probs[whole].to(self.wide),
                task.teacher.kind,
            )
            loss, sums = self._blocks.sparse(logits[rows], targets, known)
        else:
            loss, sums = self._blocks.own(logits[rows], targets)
        # Reduced per row in fp32, then over rows in fp64: one fp32 sum over all of a chunk loses five digits.
        weights = None if task.weights is None else task.weights[whole].to(self.wide)
        if weights is not None:
            loss, sums = loss * weights, sums * weights[:, None]
            if self._needs_gradient:
                logits[rows].mul_(weights[:, None])
        self.loss += loss.double().sum()
        self.sums += sums.double().sum(0)

    def _reduce(self, d_logits: Tensor, rows: Tensor, part: slice) -> None:
        """Take the gradients of hidden states, head and bias from the gradient of a chunk's logits."""
        narrow = d_logits
        if self._task.matmul_dtype != self.wide:
            narrow = self._narrowed(d_logits.shape, self._task.matmul_dtype).copy_(d_logits)
        if self.d_hidden is not None:
            self.d_hidden[part] = narrow @ self._weight
        if self.d_weight is not None:
            if narrow.dtype == self.d_weight.dtype:
                self.d_weight.addmm_(narrow.T, rows)
            else:
                self.d_weight += narrow.T @ rows
        if self.d_bias is not None:
            self.d_bias += d_logits.sum(0)

    def _product(self, rows: Tensor, weight: Tensor, held: Tensor | None) -> Tensor:
        """``rows @ weight.T`` in the buffer that an earlier chunk left, in the wide dtype."""
        shape = torch.Size((len(rows), weight.shape[0]))
        if held is None:
            held = torch.empty(shape, dtype=self.wide, device=rows.device)
        out = held[: shape[0]]
        if rows.dtype == self.wide:
            return torch.mm(rows, weight.T, out=out)
        return out.copy_(torch.mm(rows, weight.T, out=self._narrowed(shape, rows.dtype)))

    def _narrowed(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A buffer for products in a narrower dtype; what it held before is lost."""
        held = self._narrow.get(dtype)
        if held is None or held.numel() < shape.numel():
            held = self._narrow[dtype] = torch.empty(shape.numel(), dtype=dtype, device=self._hidden.device)
        return held[: shape.numel()].view(shape)
