"""What a cut did, measured: likelihoods of texts, values that are not zero, the written files read again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import CheckFailedError
from apt.console.progress import progress
from apt.evaluation.forward import evaluating
from apt.evaluation.paired import PairedTest, paired_test
from apt.evaluation.scoring import RowScores, perplexity
from apt.evaluation.statistics import Estimate, paired_ratio
from apt.evaluation.texts import Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Tokens that a written checkpoint is asked again.
_PROBE_TOKENS: Final = 128
#: Written weights are those in memory; so much of the largest logit may come from another order of sums.
_LOGIT_TOLERANCE: Final = 1e-5


@dataclass(frozen=True, slots=True)
class TextFigures:
    """A text before and after, row by row the same tokens.

    :param kind: ``agreement`` where the text was sampled from a model: how well the model is still imitated.
    :param ratio: perplexity after over before.
    :param test: of the difference in nats per token, after less before.
    """

    source: str
    kind: Literal["quality", "agreement"]
    tokens: int
    perplexity_before: Estimate
    perplexity_after: Estimate
    ratio: Estimate
    test: PairedTest

    @classmethod
    def of(cls, rows: Rows, scores: Sequence[RowScores]) -> "TextFigures":
        """Return the figures of two models' scores on the same rows, before and after."""
        before, after = scores
        sources = rows.clusters
        return cls(
            source=rows.source,
            kind="agreement" if rows.sampled else "quality",
            tokens=rows.tokens,
            perplexity_before=perplexity(before, sources),
            perplexity_after=perplexity(after, sources),
            ratio=paired_ratio(before.nll, after.nll, before.tokens, sources=sources),
            test=paired_test(before.nll, after.nll, before.tokens, sources=sources),
        )


def gap_nats(heldout: TextFigures, calibration: TextFigures) -> float:
    """Rise of the loss per token on held-out text, less that on the calibration text."""
    return heldout.test.difference.value - calibration.test.difference.value


def nonzero_parameters(checkpoint: Checkpoint) -> int:
    """Count the stored values that are not zero, a tensor at a time."""
    import torch

    total = 0
    with progress("counting", len(checkpoint.tensors), "tensors") as bar:
        for name in checkpoint.tensors:
            total += int(torch.count_nonzero(checkpoint.read(name)))
            bar.advance()
    return total


def probe_logits(model: Any, rows: Rows) -> "Tensor":
    """Return the logits of the beginning of the first row, float32 ``[tokens, vocabulary]``."""
    ids = rows.ids[:1, : min(_PROBE_TOKENS, int(rows.lengths[0]))].to(model.device)
    with evaluating([model]):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].float().cpu()
    return logits


def logit_difference(wanted: "Tensor", model: Any, rows: Rows) -> float:
    """Return how far a reloaded model's logits are from those of the model that was written, at most.

    :raises CheckFailedError: when it is more than rounding.
    """
    apart = float((probe_logits(model, rows) - wanted).abs().max())
    if not apart <= _LOGIT_TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise CheckFailedError(f"the written checkpoint computes other logits than the cut model: {apart:.3g} apart")
    return apart


def cast_weights(model: Any, dtype: "torch.dtype") -> Any:
    """Cast a model's parameters in place, as loading it in ``dtype`` does, and return it.

    Buffers are left alone: the frequencies of positions stay in float32, which ``model.to(dtype)`` would round.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
