"""The operation ``prune``: a checkpoint in, a smaller stock checkpoint out, with the figures that prove it."""

import time
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import save_model
from apt.console.errors import NotFoundError, TargetExistsError, UnsupportedError
from apt.evaluation.scoring import perplexity, score_together
from apt.evaluation.texts import Rows, context_of, load_rows
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.result import PrunePreview, PruneResult
from apt.plugins.optional.pruning.strategies.base import Pruned, Strategy, Task

if TYPE_CHECKING:
    import torch

#: Names that users know and that this version does not bring.
_PLANNED: Final = ("lottery", "dynamic")

#: Tokens a row of calibration text has, at most.
_WINDOW: Final = 512


def prune(options: PruneOptions) -> PruneResult:
    """Prune a checkpoint.

    :raises UnsupportedError: for an architecture, a strategy or a ratio that cannot be met.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    begun = time.monotonic()
    strategy = find_strategy(options.strategy)
    if options.output.exists() and not options.overwrite:
        raise TargetExistsError(f"{options.output} exists", hint="--overwrite replaces it")
    checkpoint = Checkpoint.open(options.model)
    strategy.preview(checkpoint, Goal(ratio=options.ratio))  # refuses before anything is loaded
    model: Any = checkpoint.load(dtype=_float32())
    rows = calibration_rows(checkpoint, model, options.calibration, options.tokens)
    pruned = strategy.prune(Task(model, checkpoint.architecture, Goal(ratio=options.ratio), rows, options.effort))
    pruned.model.to(checkpoint.stored_dtype)
    return _written(options, checkpoint, model, pruned, rows, begun)


def preview(options: PruneOptions) -> PrunePreview:
    """Say from headers what :func:`prune` would do; nothing is loaded or written."""
    strategy = find_strategy(options.strategy)
    checkpoint = Checkpoint.open(options.model)
    plans = tuple(strategy.preview(checkpoint, Goal(ratio=options.ratio)))
    return PrunePreview(
        checkpoint.name, options.output, options.strategy, options.ratio,
        checkpoint.parameters, checkpoint.size_bytes, plans,
    )  # fmt: skip


def find_strategy(name: str) -> Strategy:
    """Return a strategy by its component name.

    :raises UnsupportedError: for one that is planned but not in this version.
    :raises NotFoundError: for a name that nobody registered.
    """
    from apt.plugins.host import current

    registry = current().registry()
    try:
        strategy: Strategy = registry.get("strategy", name).load()()
    except NotFoundError:
        if name not in _PLANNED:
            raise
        known = ", ".join(registry.names("strategy"))
        raise UnsupportedError(f"the strategy {name!r} is not in this version", hint=f"there are {known}") from None
    return strategy


def calibration_rows(checkpoint: Checkpoint, model: Any, text: str, tokens: int) -> Rows:
    """Return rows of the calibration text, of at most about ``tokens`` tokens."""
    window = min(context_of(checkpoint), _WINDOW)
    count = max(2, tokens // window)
    rows = load_rows(text, split="calibration", checkpoint=checkpoint, max_rows=count, model=model)
    if rows.ids.shape[1] < window:  # shorter rows than expected: there may be more of them
        count = max(2, tokens // rows.ids.shape[1])
        rows = load_rows(text, split="calibration", checkpoint=checkpoint, max_rows=count, model=model)
    return rows


def _written(
    options: PruneOptions, checkpoint: Checkpoint, dense: Any, pruned: Pruned, rows: Rows, begun: float
) -> PruneResult:
    """Measure the weights as they will be stored, write them, and tell."""
    stored = checkpoint.stored_dtype
    measured = pruned.model.float() if stored != _float32() else pruned.model
    before, after = (perplexity(scores) for scores in score_together([dense, measured], rows)[0])
    metrics = {
        "strategy": options.strategy,
        "plan": pruned.plan,
        "removed_share": pruned.removed_share,
        "calibration_perplexity_before": before.value,
        "calibration_perplexity_after": after.value,
    }
    written = save_model(
        measured.to(stored), options.output, operation="prune", parent=checkpoint,
        options=options.model_dump(mode="json"), metrics=metrics, overwrite=options.overwrite,
    )  # fmt: skip
    return PruneResult(
        path=options.output,
        model=checkpoint.name,
        strategy=options.strategy,
        asked_ratio=options.ratio,
        removed_share=pruned.removed_share,
        smaller=pruned.smaller,
        plan=pruned.plan,
        parameters_before=checkpoint.parameters,
        parameters_after=written.parameters,
        size_bytes_before=checkpoint.size_bytes,
        size_bytes_after=written.size_bytes,
        calibration_text=rows.source,
        calibration_tokens=rows.tokens,
        calibration_perplexity_before=before,
        calibration_perplexity_after=after,
        layers=pruned.layers,
        trials=pruned.trials,
        seconds=time.monotonic() - begun,
    )


def _float32() -> "torch.dtype":
    import torch

    return torch.float32
