"""Making the cut: a strategy's model is measured, written aside, read again, and only then appears."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.output import to_jsonable
from apt.evaluation.memory import peak_rss_bytes
from apt.evaluation.scoring import score_together
from apt.evaluation.speed import SpeedComparison, compare_speed
from apt.plugins.optional.pruning.contract import LayerCost, LayerCut, PlanTrial, Task
from apt.plugins.optional.pruning.decoder.trace import check_ids, finite
from apt.plugins.optional.pruning.measure import (
    TextFigures,
    cast_weights,
    gap_nats,
    logit_difference,
    nonzero_parameters,
    probe_logits,
)
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.run import Run
from apt.plugins.optional.pruning.texts import Texts, load_texts
from apt.training.output import round_weights

#: Where a strategy that lasts keeps its state, in the work directory.
_STRATEGY: Final = "strategy"
#: What the lineage keeps of a result.
_KEPT: Final = (
    "strategy", "plan", "goal", "removed_share", "parameters_after", "nonzero_after", "heldout", "calibration",
    "gap_nats", "speed", "max_logit_difference",
)  # fmt: skip


class Cutter(Protocol):
    """What makes a cut and writes it."""

    def __call__(self, run: Run, target: Path, *, speed: bool) -> PruneResult:
        """Write the cut to ``target``."""
        ...


@dataclass(frozen=True)
class Made:
    """What a strategy did, without the model.

    :param removed_share: share of the decoder's linear weights that is gone or zero, exactly.
    :param fitted_perplexity: see :class:`~.contract.Pruned`; so ``held_back_perplexity`` and ``sensitivity``.
    """

    plan: str
    removed_share: float
    smaller: bool
    layers: tuple[LayerCut, ...]
    trials: tuple[PlanTrial, ...] = ()
    fitted_perplexity: float | None = None
    held_back_perplexity: float | None = None
    sensitivity: tuple[LayerCost, ...] = ()


def cut(run: Run, target: Path, *, speed: bool) -> PruneResult:
    """Cut in memory and write to ``target``, with the figures in its lineage.

    :raises CheckFailedError: when what was written does not compute what was cut; nothing is left then.
    """
    dense: Any = run.checkpoint.load(dtype=torch.float32)
    texts = load_texts(run.options, run.checkpoint, dense)
    _check(dense, texts)
    model, made = _strategy(run, dense, texts)
    stored = run.checkpoint.stored_dtype
    round_weights(model, stored)
    calibration, heldout = (
        TextFigures.of(rows, score_together([dense, model], rows)[0]) for rows in (texts.calibration, texts.heldout)
    )
    logits = probe_logits(model, texts.heldout)
    with CheckpointWriter(
        target, operation="prune", parent=run.checkpoint, options=run.options.model_dump(mode="json"),
        overwrite=run.options.overwrite,
    ) as writer:  # fmt: skip
        writer.write_model(cast_weights(model, stored), run.checkpoint)
        del model
        written = Checkpoint.open(writer.directory)
        again: Any = written.load(dtype=torch.float32)
        apart = logit_difference(logits, again, texts.heldout)
        result = told(
            run, target, written, made, calibration, heldout,
            speed=compared(run, dense, again) if speed else None, speed_skipped="" if speed else "--no-speed",
            max_logit_difference=apart,
        )  # fmt: skip
        keep(result, writer)
    shutil.rmtree(run.work_dir / _STRATEGY, ignore_errors=True)
    with suppress(OSError):  # it may hold what is still needed
        run.work_dir.rmdir()
    return result


def _check(dense: Any, texts: Texts) -> None:
    """Refuse what would stop the measuring, before hours of work.

    :raises BadInputError: for token ids beyond the vocabulary, or a model whose logits are not finite.
    """
    for rows in (texts.calibration, texts.heldout):
        check_ids(rows.ids, dense.get_input_embeddings().weight.shape[0], source=rows.source)
    finite(probe_logits(dense, texts.heldout))


def keep(result: PruneResult, writer: CheckpointWriter) -> None:
    """Put the figures of a result into the lineage."""
    writer.metrics.update({name: to_jsonable(getattr(result, name)) for name in _KEPT})


def _strategy(run: Run, dense: Any, texts: Texts) -> tuple[Any, Made]:
    """Let the strategy work; return its model and the rest apart, so that the model can go when it is written."""
    options = run.options
    pruned = run.strategy.prune(
        Task(
            dense, run.checkpoint.architecture, run.goal, texts.calibration, options.effort, options.seed,
            run.settings, run.work_dir / _STRATEGY, run.checkpoint.stored_dtype,
        )
    )  # fmt: skip
    return pruned.model, Made(
        pruned.plan, pruned.removed_share, pruned.smaller, pruned.layers, pruned.trials, pruned.fitted_perplexity,
        pruned.held_back_perplexity, pruned.sensitivity,
    )  # fmt: skip


def compared(run: Run, dense: Any, model: Any) -> SpeedComparison:
    """Measure both models' speed in the dtype that they are stored in; their weights are cast in place."""
    stored = run.checkpoint.stored_dtype
    return compare_speed(cast_weights(dense, stored), cast_weights(model, stored))


def told(
    run: Run,
    path: Path,
    written: Checkpoint,
    made: Made,
    calibration: TextFigures,
    heldout: TextFigures,
    **more: Any,
) -> PruneResult:
    """Put the result together.

    :param written: the files, wherever they lie meanwhile; :param path: where they will be.
    """
    return PruneResult(
        path=path,
        model=run.checkpoint.name,
        strategy=run.options.strategy,
        goal=str(run.goal),
        asked_ratio=run.goal.share,
        removed_share=made.removed_share,
        smaller=made.smaller,
        plan=made.plan,
        parameters_before=run.checkpoint.parameters,
        parameters_after=written.parameters,
        nonzero_before=nonzero_parameters(run.checkpoint),
        nonzero_after=nonzero_parameters(written),
        size_bytes_before=run.checkpoint.size_bytes,
        size_bytes_after=written.size_bytes,
        calibration=calibration,
        heldout=heldout,
        gap_nats=gap_nats(heldout, calibration),
        layers=made.layers,
        trials=made.trials,
        fitted_perplexity=made.fitted_perplexity,
        held_back_perplexity=made.held_back_perplexity,
        sensitivity=made.sensitivity,
        peak_rss_bytes=peak_rss_bytes(),
        cpu_seconds=time.process_time() - run.began_cpu,
        seconds=time.monotonic() - run.began,
        **more,
    )
