"""The cut layer by layer from the files: one decoder layer and its activations in memory, resumable after a kill."""

from pathlib import Path
from typing import Any

import torch

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.errors import UnsupportedError, UsageError
from apt.plugins.optional.pruning.cutting import Made, compared, keep, told
from apt.plugins.optional.pruning.layers import CheckpointLayers
from apt.plugins.optional.pruning.measure import TextFigures
from apt.plugins.optional.pruning.placing import should_stream
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.run import Run
from apt.plugins.optional.pruning.strategies.base import StreamingStrategy
from apt.plugins.optional.pruning.streamed import Streamed, prune_streamed
from apt.plugins.optional.pruning.texts import load_texts, text_of


def cut_streamed(run: Run, target: Path, *, speed: bool) -> PruneResult:
    """Cut without holding the model and write to ``target``, with the figures in its lineage.

    :raises UnsupportedError: when the strategy needs the whole model.
    """
    options, checkpoint = run.options, run.checkpoint
    if not isinstance(run.strategy, StreamingStrategy):
        raise UnsupportedError(f"the strategy {options.strategy} needs the whole model in memory", hint="no --stream")
    if "self" in (text_of(options, checkpoint), options.heldout):
        raise UsageError(
            "a text is sampled from a model in memory, which --stream does not hold",
            hint="--calibration embedded, or a file",
        )
    texts = load_texts(options, checkpoint)
    plan = run.strategy.stream_plan(
        checkpoint, run.goal, effort=options.effort, seed=options.seed, settings=run.settings
    )

    def finish(writer: CheckpointWriter, streamed: Streamed) -> PruneResult:
        assert streamed.heldout is not None
        written = Checkpoint.open(writer.directory)
        _check(written)
        figures = [
            TextFigures.of(rows, (scores.before, scores.after))
            for rows, scores in ((texts.calibration, streamed.calibration), (texts.heldout, streamed.heldout))
        ]
        made = Made(streamed.plan, streamed.removed_share, streamed.smaller, streamed.layers)
        result = told(
            run, target, written, made, *figures,
            reload_skipped="cut layer by layer, there is no model to compare with", **_speed(run, written, speed),
        )  # fmt: skip
        keep(result, writer)
        return result

    return prune_streamed(
        checkpoint, target, plan, texts.calibration, finish,
        heldout=texts.heldout, options=options.model_dump(mode="json"), overwrite=options.overwrite,
    )  # fmt: skip


def _check(written: Checkpoint) -> None:
    """Hold the tensors of what was written against what transformers builds from its config.

    :raises BadInputError: when one is missing, unexpected or of another shape.
    """
    layers = CheckpointLayers(written)
    for index in range(layers.layers):
        layers.names_of(index)


def _speed(run: Run, written: Checkpoint, asked: bool) -> dict[str, Any]:
    """Measure the speed where both models have room in memory, which is not why one streams."""
    if not asked:
        return {"speed_skipped": "--no-speed"}
    if should_stream(run.checkpoint):
        return {"speed_skipped": "the dense model takes more than half of the free memory"}
    dense, model = (c.load(dtype=torch.float32) for c in (run.checkpoint, written))
    return {"speed": compared(run, dense, model)}
