"""What a run is judged by: cross-entropy on rows that are not trained on, whatever the loss that is trained."""

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
    model: Any, source: RowSource, *, batch_rows: int, device: torch.device, process: int = 0, processes: int = 1
) -> Tensor:
    """Return :func:`score` of this process's share of the rows, zero elsewhere; the shares add up to all rows."""
    sums = torch.zeros(len(source), 2, dtype=torch.float64)
    batches = [range(b, min(b + batch_rows, len(source))) for b in range(0, len(source), batch_rows)]
    for indices in batches[process::processes]:
        sums[list(indices)] = score(model, on_device(batch_of(source, indices), device)).cpu()
    return sums


def mean_of(sums: Tensor) -> Estimate:
    """Return the mean loss per token with its 95 % interval over rows."""
    kept = sums[sums[:, 1] > 0]
    return ratio_estimate(kept[:, 0].numpy(), kept[:, 1].numpy(), resamples=1000)
