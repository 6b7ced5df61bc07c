"""What the dense model does on the calibration rows: its residual stream between all blocks."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from apt.console.errors import BadInputError
from apt.console.progress import progress
from apt.plugins.optional.pruning.decoder.blocks import Decoder, calls_of, inputs_of

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

#: Tokens of one forward pass.
BATCH_TOKENS: Final = 2048


@dataclass(frozen=True)
class CalibrationBatch:
    """Rows of like length that pass through a model side by side.

    :param order: int64 [rows], which rows of the text these are.
    :param ids: int64 [rows, window], padded on the right.
    :param counted: bool [rows, window - 1], whether the token *after* each position counts in the loss.
    :param valid: bool [rows, window], false on padding.
    """

    order: Tensor
    ids: Tensor
    counted: Tensor
    valid: Tensor


def calibration_batches(rows: "Rows") -> list[CalibrationBatch]:
    """Put rows of like length together, so that little is computed for padding."""
    step = max(1, BATCH_TOKENS // rows.ids.shape[1])
    batches = []
    for some in torch.split(rows.lengths.argsort(descending=True, stable=True), step):
        width = int(rows.lengths[some].max())
        valid = torch.arange(width)[None] < rows.lengths[some][:, None]
        batches.append(CalibrationBatch(some, rows.ids[some, :width], rows.counted[some, : width - 1], valid))
    return batches


@dataclass(frozen=True)
class Batch(CalibrationBatch):
    """Some calibration rows and the dense model's residual stream on them.

    :param streams: the stream [rows, window, hidden] before each block, and after the last one.
    :param middles: the stream between attention and MLP of each block.
    :param attention_calls: keyword arguments of each block's attention (rotary tables, mask).
    """

    streams: tuple[Tensor, ...]
    middles: tuple[Tensor, ...]
    attention_calls: tuple[dict[str, Any], ...]


def finite(stream: Tensor) -> Tensor:
    """Return a stream as it is.

    :raises BadInputError: when it is not finite.
    """
    if not bool(stream.isfinite().all()):
        raise BadInputError("the model's activations are not finite", hint="apt_model test MODEL names the tensors")
    return stream


def stream_error(streams: Iterable[Tensor], wanted: Iterable[Tensor], valid: Iterable[Tensor]) -> float:
    """Squared distance of the streams from those wanted, relative to the latter's square, padding left out."""
    apart = square = 0.0
    for stream, target, mask in zip(streams, wanted, valid, strict=True):
        apart += float((stream - target)[mask].square().sum())
        square += float(target[mask].square().sum())
    return apart / max(square, 1e-30)


def trace(decoder: Decoder, rows: "Rows") -> list[Batch]:
    """Run the dense model once over the rows and keep its residual stream.

    The memory is ``rows * window * hidden * (2 * layers + 1)`` floats.

    :raises BadInputError: when a token id lies outside the model's vocabulary.
    """
    batches = []
    with progress("calibrating", len(rows), "rows") as bar:
        for batch in batches_of(decoder, rows):
            batches.append(_trace_batch(decoder, batch))
            bar.advance(len(batch.ids))
    return batches


def batches_of(decoder: Decoder, rows: "Rows") -> list[CalibrationBatch]:
    """Return the rows batch by batch, for a decoder.

    :raises BadInputError: when a token id lies outside the model's vocabulary.
    """
    check_ids(rows.ids, decoder.model.get_input_embeddings().weight.shape[0], source=rows.source)
    return calibration_batches(rows)


def check_ids(ids: Tensor, vocabulary: int, *, source: str) -> None:
    """Refuse token ids that the embedding does not have.

    :raises BadInputError: naming the text and the size of the vocabulary.
    """
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise BadInputError(f"the text {source!r} has token ids outside the model's vocabulary of {vocabulary}")


@torch.no_grad()
def _trace_batch(decoder: Decoder, batch: CalibrationBatch) -> Batch:
    with ExitStack() as stack:
        before = [stack.enter_context(inputs_of(block.layer)) for block in decoder.blocks]
        middle = [stack.enter_context(inputs_of(block.mlp_norm)) for block in decoder.blocks]
        calls = [stack.enter_context(calls_of(block.attention)) for block in decoder.blocks]
        last = stack.enter_context(inputs_of(decoder.final_norm))
        # One logit a row is computed and thrown away: only the stream is of interest.
        decoder.model(input_ids=batch.ids, use_cache=False, logits_to_keep=1)
    kwargs = tuple({k: v for k, v in seen[0].items() if k != "hidden_states"} for seen in calls)
    streams = tuple(finite(seen[0]) for seen in [*before, last])
    return Batch(batch.order, batch.ids, batch.counted, batch.valid, streams, tuple(seen[0] for seen in middle), kwargs)
