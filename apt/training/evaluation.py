"""What a run is judged by: cross-entropy on rows that are not trained on, whatever the loss that is trained."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apt.evaluation.statistics import Estimate, ratio_estimate
from apt.training.contract import Batch, RowSource, counted
from apt.training.data.rows import batch_of, on_device
from apt.training.forward import last_hidden, targets_of
from apt.training.losses.head import Head
from apt.training.losses.linear import token_nll


def score(model: Any, batch: Batch) -> Tensor:
    """Return ``[rows, 2]``: summed negative log-likelihood (nats) and number of the counted tokens, float64."""
    rows = counted(batch["labels"]).nonzero()[:, 0]
    nll = token_nll(last_hidden(model, batch), Head.of(model), targets_of(batch)).double()
    sums = torch.zeros(len(batch["labels"]), 2, dtype=torch.float64, device=nll.device)
    sums.index_add_(0, rows, torch.stack([nll, torch.ones_like(nll)], -1))
    return sums


def score_source(
    model: Any, source: RowSource, *, batch_rows: int, device: torch.device, process: int = 0, processes: int = 1,
    by: Callable[[Any, Batch], Tensor] = score,
) -> Tensor:  # fmt: skip
    """Return :func:`score` of this process's share of the rows, zero elsewhere; the shares add up to all rows.

    Every process runs the model equally often, because gathering a sharded one takes all of them: who has no batch left
    runs one again while the others run theirs.

    :param by: what scores a batch; :func:`score`, or what calls it from within a module that is sharded.
    """
    sums = torch.zeros(len(source), 2, dtype=torch.float64)
    batches = [range(b, min(b + batch_rows, len(source))) for b in range(0, len(source), batch_rows)]
    share = batches[process::processes] or batches[:1]
    rounds = math.ceil(len(batches) / processes)
    for indices in share + share[-1:] * (rounds - len(share)):
        scored = by(model, on_device(batch_of(source, indices), device)).cpu()
        if process < len(batches):
            sums[list(indices)] = scored
    return sums


def mean_of(sums: Tensor) -> Estimate:
    """Return the mean loss per token with its 95 % interval over rows."""
    kept = sums[sums[:, 1] > 0]
    return ratio_estimate(kept[:, 0].numpy(), kept[:, 1].numpy(), resamples=1000)
