"""Hidden-size cuts: the residual stream itself loses channels (Muralidharan et al., "Minitron", 2024).

Every matrix and norm that touches the stream is sliced, embedding and head too. A rotation would lose less, but norms
with weights of their own for each channel do not commute with one, so channels are picked. What the picking breaks is
mended in closed form, block by block, on the streams of the model narrowed so far:

- a norm over fewer channels divides by another root mean square: its weight is scaled by the measured ratio;
- the matrices behind a norm see fewer inputs: with ``M`` the least-squares map from the narrow norm's output to the
  dense one's, ``W M`` gives what ``W`` gave, as far as the channels that stay tell;
- the matrices in front of the stream are fitted to the dense stream's channels that stay, as in every other cut;
- an embedding that is multiplied by the root of the hidden size (Gemma) is rescaled so that the product stays;
- an untied head is mended like any matrix behind a norm; for a tied one the last norm's weight is fitted so that the
  logits come nearest, which is a linear problem too.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.blocks import Block, Decoder, only_input
from apt.plugins.optional.pruning.decoder.branches import Branch
from apt.plugins.optional.pruning.decoder.leastsquares import Gram, problem
from apt.plugins.optional.pruning.decoder.matrices import Matrix
from apt.plugins.optional.pruning.decoder.norms import Norm
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.decoder.trace import Batch
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, mean_loss

#: Matrices that read the stream before attention, and before the MLP.
ATTENTION_READERS: Final = ("q", "k", "v")
MLP_READERS: Final = ("gate", "up")


@dataclass(frozen=True)
class Width:
    """A decoder at a hidden size.

    :param decoder: of the narrow copy its modules are narrow and its config is still the dense one: it runs block by
        block, and :func:`~.surgery.build` makes a stock model of it.
    :param calibration: the same rows, the dense streams reduced to the channels that stay.
    :param sizes: the dense ones but for the hidden size.
    :param channels: of the dense stream that stay, ascending.
    :param loss: mean nats per counted token of the batches held back, of the fitted ones where none are; NaN for the
        dense decoder.
    """

    decoder: Decoder
    calibration: Calibration
    sizes: Sizes
    channels: Sequence[int]
    loss: float = math.nan


class Widths:
    """A dense decoder, and narrower copies of it, made and mended when they are asked for; the last one is kept.

    :param calibration: the rows traced through the dense decoder.
    """

    def __init__(
        self, decoder: Decoder, architecture: Architecture, calibration: Calibration, sizes: Sizes, *, mend: bool = True
    ) -> None:
        self.architecture = architecture
        self.dense = Width(decoder, calibration, sizes, range(sizes.hidden))
        self._mend = mend
        self._last = self.dense

    def at(self, hidden: int) -> Width:
        """Return the decoder at a hidden size, at most the dense one."""
        if hidden == self.dense.sizes.hidden:
            return self.dense
        if hidden != self._last.sizes.hidden:
            self._last = self.dense  # what was kept goes before the next one is made
            self._last = narrow(self.dense, self.architecture, hidden, mend=self._mend)
        return self._last


@torch.no_grad()
def choose_channels(decoder: Decoder, architecture: Architecture, batches: Sequence[Batch], keep: int) -> list[int]:
    """Return the ``keep`` channels of the stream that are used most, ascending.

    A channel counts by what the matrices behind each norm read from it, energy times squared column norm, as a share
    of what they read from all channels, summed over the norms. (Choosing by the error after compensation, with one
    Gram matrix a norm or one for all, was no better in trials.)
    """
    scores = torch.zeros(decoder.model.get_input_embeddings().weight.shape[1])
    for norm, streams, weights in _readers(decoder, architecture, batches):
        energy = torch.stack([norm.of(x[b.valid]).square().sum(0) for x, b in zip(streams, batches, strict=True)])
        read = energy.sum(0) * torch.cat(weights).square().sum(0)
        scores += read / read.sum().clamp(min=1e-30)
    return sorted(scores.argsort(descending=True, stable=True)[:keep].tolist())


def _readers(
    decoder: Decoder, architecture: Architecture, batches: Sequence[Batch]
) -> list[tuple[Norm, list[Tensor], list[Tensor]]]:
    """Every norm that reads the stream, the dense streams before it, and the matrices behind it."""
    found = []
    for layer, block in enumerate(decoder.blocks):
        for norm, streams, roles in (
            (block.attention_norm, [b.streams[layer] for b in batches], ATTENTION_READERS),
            (block.mlp_norm, [b.middles[layer] for b in batches], MLP_READERS),
        ):
            weights = [m.weight for role, m in block.matrices.items() if role in roles]
            found.append((Norm(norm, architecture.norms_add_one), streams, weights))
    final = Norm(decoder.final_norm, architecture.norms_add_one)
    found.append((final, [b.streams[-1] for b in batches], [decoder.head.weight.detach()]))
    return found


@torch.no_grad()
def narrow(dense: Width, architecture: Architecture, hidden: int, *, mend: bool = True) -> Width:
    """Reduce the stream of a copy of the model to the ``hidden`` channels that are used most; mend what that breaks.

    :param mend: fit matrices by least squares; else they are only sliced, and norms rescaled.
    """
    kept = choose_channels(dense.decoder, architecture, dense.calibration.fitted, hidden)
    narrowed = Decoder.of(_sliced(dense.decoder, architecture, kept), architecture)
    work = _Work(dense.calibration, torch.tensor(kept), architecture.norms_add_one, mend)
    with progress("narrowing", len(narrowed.blocks), "blocks") as bar:
        for layer, (block, narrow_block) in enumerate(zip(dense.decoder.blocks, narrowed.blocks, strict=True)):
            work.attention(block, narrow_block, layer)
            work.mlp(block, narrow_block, layer)
            bar.advance()
        work.final(dense.decoder, narrowed)
    first = work.fitted if dense.calibration.held_back else 0
    loss = mean_loss(narrowed, work.batches[first:], work.streams[first:])
    return Width(narrowed, work.narrow_calibration(), replace(dense.sizes, hidden=hidden), kept, loss)


def _sliced(decoder: Decoder, architecture: Architecture, kept: Sequence[int]) -> Any:
    """Return a copy of the model whose modules have only the channels ``kept``."""
    dense_size = decoder.model.get_input_embeddings().weight.shape[1]
    model = copy.deepcopy(decoder.model)
    narrowed = Decoder.of(model, architecture)
    index = torch.tensor(kept)
    for block in narrowed.blocks:
        for role in architecture.roles:
            module = block.layer.get_submodule(architecture.roles[role])
            if role in ("o", "down"):
                _slice_outputs(module, index, transposed=architecture.transposed)
            elif role.endswith("norm"):
                if role not in ("q_norm", "k_norm"):
                    Norm(module).keep(index)
            else:
                _slice_weight(module, index, 0 if architecture.transposed else 1)
    Norm(narrowed.final_norm).keep(index)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    for name in (architecture.embedding, *architecture.other_embeddings):
        _slice_weight(model.get_submodule(name.removesuffix(".weight")), index, 1)
    if architecture.embeddings_scaled:
        embedding.weight.mul_((dense_size / len(kept)) ** 0.5)
        embedding.embed_scale.fill_(len(kept) ** 0.5)
    if tied:
        head.weight = embedding.weight
    else:
        _slice_weight(head, index, 1)
    return model


def _slice_weight(module: nn.Module, index: Tensor, side: int) -> None:
    weight: Any = module.weight
    module.weight = nn.Parameter(weight.detach().index_select(side, index).contiguous())


def _slice_outputs(module: Any, index: Tensor, *, transposed: bool) -> None:
    _slice_weight(module, index, 1 if transposed else 0)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[index].contiguous())
    if transposed:
        module.nf = len(index)


class _Work:
    """The pass through the blocks; ``streams`` are the narrow model's, before what comes next."""

    def __init__(self, calibration: Calibration, index: Tensor, norms_add_one: bool, mend: bool) -> None:
        self.batches = calibration.batches
        self.fitted = len(calibration.fitted)
        self.index = index
        self.add_one = norms_add_one
        self.mend = mend
        self.streams = [batch.streams[0][..., index].clone() for batch in self.batches]

    def attention(self, dense: Block, block: Block, layer: int) -> None:
        """Narrow the attention of a block and move the streams past it."""
        readers = [(m, block.matrices[r]) for r, m in dense.matrices.items() if r in ATTENTION_READERS]
        streams = [batch.streams[layer] for batch in self.batches]
        normed = self.read(Norm(dense.attention_norm, self.add_one), Norm(block.attention_norm, self.add_one), streams,
                           readers)  # fmt: skip
        inputs = [
            only_input(block.output.matrix.module, block.attention, x, **batch.attention_calls[layer])
            for x, batch in zip(normed, self.batches, strict=True)
        ]
        self.write(block.output, inputs, [batch.middles[layer] for batch in self.batches])

    def mlp(self, dense: Block, block: Block, layer: int) -> None:
        """Narrow the MLP of a block and move the streams past it."""
        readers = [(m, block.matrices[r]) for r, m in dense.matrices.items() if r in MLP_READERS]
        streams = [batch.middles[layer] for batch in self.batches]
        normed = self.read(Norm(dense.mlp_norm, self.add_one), Norm(block.mlp_norm, self.add_one), streams, readers)
        inputs = [only_input(block.down.matrix.module, block.mlp, x) for x in normed]
        self.write(block.down, inputs, [batch.streams[layer + 1] for batch in self.batches])

    def read(
        self, dense: Norm, norm: Norm, dense_streams: Sequence[Tensor], readers: Sequence[tuple[Matrix, Matrix]]
    ) -> list[Tensor]:
        """Mend a norm and the matrices behind it.

        :param readers: each matrix in the dense and in the narrow model.
        :returns: the narrow norm's output.
        """
        wanted = [dense.of(stream) for stream in dense_streams]
        self.rescale(norm, [norm.of(s) for s in self.streams], [y[..., self.index] for y in wanted])
        normed = [norm.of(stream) for stream in self.streams]
        if self.mend:
            biased = any(new.bias is not None for _, new in readers)
            mapping, offset = self.prediction(normed, wanted, biased)
            for old, new in readers:
                new.weight.copy_(old.weight @ mapping)
                if new.bias is not None and old.bias is not None:
                    new.bias.copy_(old.bias + old.weight @ offset)
        return normed

    def rescale(self, norm: Norm, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """Scale a norm's gain so that its outputs come nearest to those wanted."""
        both = product = 0.0
        for batch, y, target in list(zip(self.batches, outputs, wanted, strict=True))[: self.fitted]:
            plain = y[batch.valid] - norm.shift
            both += float(plain.square().sum(dtype=torch.float64))
            product += float((plain * (target[batch.valid] - norm.shift)).sum(dtype=torch.float64))
        if both > 0.0 and product > 0.0:
            norm.scale(product / both)

    def prediction(self, inputs: Sequence[Tensor], wanted: Sequence[Tensor], biased: bool) -> tuple[Tensor, Tensor]:
        """The linear map [dense, narrow] from a narrow norm's output to the dense one's, and its offset [dense]."""
        narrow, dense = inputs[0].shape[-1], wanted[0].shape[-1]
        gram = Gram(narrow + int(biased), dense)
        for batch, x, y in list(zip(self.batches, inputs, wanted, strict=True))[: self.fitted]:
            rows = x[batch.valid]
            gram.add(torch.cat([rows, torch.ones(len(rows), 1)], 1) if biased else rows, y[batch.valid])
        selection = torch.zeros(dense, narrow + int(biased))
        selection[self.index, torch.arange(narrow)] = 1.0
        solution = problem(gram, selection).solve(range(narrow + int(biased))).to(inputs[0].dtype)
        return solution[:, :narrow], solution[:, narrow] if biased else torch.zeros(dense)

    def write(self, branch: Branch, inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """Mend the matrix in front of the stream, and the norm behind it if any; move the streams past it.

        :param wanted: the dense streams after the branch.
        """
        matrix = branch.matrix
        lacking = [y[..., self.index] - s for y, s in zip(wanted, self.streams, strict=True)]
        if branch.post_norm is not None:
            norm = Norm(branch.post_norm, self.add_one)
            self.rescale(norm, [norm.of(_linear(matrix, x)) for x in inputs], lacking)
        if self.mend:
            gram = Gram(inputs[0].shape[-1], len(self.index))
            for batch, x, y in list(zip(self.batches, inputs, lacking, strict=True))[: self.fitted]:
                gram.add(*branch.equations(x[batch.valid], y[batch.valid]))
            matrix.weight.copy_(problem(gram, matrix.weight).solve(range(inputs[0].shape[-1])))
        for stream, x in zip(self.streams, inputs, strict=True):
            stream += branch.added(_linear(matrix, x))

    def final(self, decoder: Decoder, narrowed: Decoder) -> None:
        """Mend the last norm, and the head where it is not the embedding."""
        dense, norm = Norm(decoder.final_norm, self.add_one), Norm(narrowed.final_norm, self.add_one)
        streams = [batch.streams[-1] for batch in self.batches]
        old, new = decoder.head.weight.detach(), narrowed.head.weight.detach()
        tied = narrowed.head.weight is narrowed.model.get_input_embeddings().weight
        if not tied:
            self.read(dense, norm, streams, [(_whole(decoder.head), _whole(narrowed.head))])
            return
        wanted = [dense.of(stream) for stream in streams]
        scale = float((new * old[:, self.index]).sum() / new.square().sum())
        self.rescale(norm, [norm.of(s) for s in self.streams], [y[..., self.index] * scale for y in wanted])
        if self.mend:
            self.fit_final_norm(norm, wanted, old, new)

    def fit_final_norm(self, norm: Norm, wanted: Sequence[Tensor], old: Tensor, new: Tensor) -> None:
        """Fit gain and shift of the last norm so that the logits behind a tied head come nearest to the dense ones.

        With unit outputs ``u``, narrow embedding ``E`` and dense logits ``t`` the problem is linear in gain ``g`` and
        shift ``b``: ``|E (g * u + b) - t|^2``. Its normal matrix is ``E'E`` times, entry by entry, the sum of
        ``[u 1][u 1]'``.
        """
        narrow = len(self.index)
        old, new = old.double() - old.double().mean(0), new.double() - new.double().mean(0)
        square, cross = new.T @ new, new.T @ old
        parts = 2 if norm.has_shift else 1
        products = torch.zeros(parts * narrow, parts * narrow, dtype=torch.float64)
        right = torch.zeros(parts * narrow, dtype=torch.float64)
        for batch, s, y in list(zip(self.batches, self.streams, wanted, strict=True))[: self.fitted]:
            unit = ((norm.of(s[batch.valid]) - norm.shift) / norm.gain).double()
            features = torch.cat([unit, torch.ones_like(unit)], 1)[:, : parts * narrow]
            products += features.T @ features
            right += (features * (y[batch.valid].double() @ cross.T).repeat(1, parts)).sum(0)
        a = products * square.repeat(parts, parts)
        start = torch.cat([norm.gain, norm.shift.expand(narrow)])[: parts * narrow].double()
        strength = 1e-3 * a.diagonal().mean()
        a += strength * torch.eye(len(a), dtype=torch.float64)
        solution = torch.linalg.solve(a, right + strength * start)
        norm.set(solution[:narrow], solution[narrow:] if norm.has_shift else None)

    def narrow_calibration(self) -> Calibration:
        """The calibration with the dense streams reduced to the channels that stay."""
        batches = [
            replace(
                batch,
                streams=tuple(s[..., self.index] for s in batch.streams),
                middles=tuple(s[..., self.index] for s in batch.middles),
            )
            for batch in self.batches
        ]
        return Calibration(batches[: self.fitted], batches[self.fitted :])


def _linear(matrix: Matrix, inputs: Tensor) -> Tensor:
    return nn.functional.linear(inputs, matrix.weight, matrix.bias)


def _whole(head: Any) -> Matrix:
    return Matrix("head", head, 0, head.weight.shape[0])
