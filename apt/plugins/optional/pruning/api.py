"""Pruning from Python: a reference gives a checkpoint, a model in memory gives a model."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apt.checkpoint.architecture import descriptor
from apt.evaluation.sampling import sample_rows, start_token
from apt.evaluation.texts import DEFAULT_WINDOW, SAMPLED_ROWS, rows_from_ids
from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.measure import cast_weights
from apt.plugins.optional.pruning.operation import prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.run import find_strategy
from apt.store import model_path, resolve

if TYPE_CHECKING:
    from apt.plugins.optional.pruning.strategies.dependency_graph import GraphResult


def prune_reference(
    model: str, ratio: float, strategy: str, output: Path | str | None, calibration: str | None, overwrite: bool
) -> "PruneResult | GraphResult":
    """Prune a checkpoint; see :func:`apt.plugins.optional.pruning.operation.prune`."""
    target = Path(output) if output else model_path(f"{resolve(model).name}-pruned-{round(100 * ratio)}")
    return prune(
        PruneOptions(
            model=model, output=target, strategy=strategy, ratio=ratio, calibration=calibration, overwrite=overwrite
        )
    )


def prune_in_memory(model: Any, ratio: float, strategy: str) -> Any:
    """Return a pruned copy of a transformers model, in its dtype; the calibration text is sampled from it.

    :raises UnsupportedError: for an architecture or a ratio that cannot be met.
    """
    config = model.config.to_dict()
    architecture = descriptor(config, where="the model in memory")
    dense = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    training = dense.training
    dense.eval()
    try:
        window = min(architecture.dimensions(config).context, DEFAULT_WINDOW)
        count = SAMPLED_ROWS["calibration"]
        ids = sample_rows(dense, rows=count, window=window, seed=0, bos=start_token(config))
        rows = rows_from_ids(ids, source="sampled from the model")
        pruned = find_strategy(strategy).prune(Task(dense, architecture, Goal(ratio=ratio), rows))
    finally:
        dense.train(training)
    return cast_weights(pruned.model, model.dtype)
