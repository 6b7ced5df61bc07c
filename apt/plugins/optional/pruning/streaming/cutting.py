"""The cut layer by layer from the files: one decoder layer and its activations in memory, resumable after a kill."""

import math
from pathlib import Path
from typing import Any

import torch

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.errors import UnsupportedError, UsageError
from apt.plugins.optional.pruning.contract import PlanPreview, StreamingStrategy
from apt.plugins.optional.pruning.cutting import Made, compared, keep, told
from apt.plugins.optional.pruning.decoder.layers import CheckpointLayers
from apt.plugins.optional.pruning.measure import TextFigures
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.run import Run
from apt.plugins.optional.pruning.streaming.placing import should_stream
from apt.plugins.optional.pruning.streaming.streamed import ALIVE, Streamed, StreamPlan, prune_streamed, tensor_specs
from apt.plugins.optional.pruning.streaming.streams import MEMORY_BYTES
from apt.plugins.optional.pruning.texts import load_texts, text_of


def plan_of(run: Run) -> StreamPlan:
    """Return what the strategy does layer by layer; only headers are read.

    :raises UnsupportedError: when the strategy needs the whole model.
    """
    options, checkpoint = run.options, run.checkpoint
    if not isinstance(run.strategy, StreamingStrategy):
        raise UnsupportedError(f"the strategy {options.strategy} needs the whole model in memory", hint="no --stream")
    return run.strategy.stream_plan(
        checkpoint, run.goal, effort=options.effort, seed=options.seed, settings=run.settings
    )


def check_text(run: Run) -> None:
    """Refuse what layers alone cannot write.

    :raises UsageError: when a text would have to be sampled from the model.
    """
    if "self" in (text_of(run.options, run.checkpoint), run.options.heldout):
        raise UsageError(
            "a text is sampled from a model in memory, which --stream does not hold",
            hint="--calibration embedded, or a file",
        )


def preview_streamed(run: Run) -> PlanPreview:
    """Return the one plan of a cut layer by layer: nothing is searched, so it need not be one that a search weighs."""
    plan, checkpoint = plan_of(run), run.checkpoint
    if not plan.smaller:  # a mask: every tensor stays
        return run.plans[0]
    specs = tensor_specs(checkpoint, plan)
    return PlanPreview(
        plan.text, plan.removed_share(()), sum(math.prod(spec.shape) for spec in specs),
        sum(spec.size_bytes for spec in specs),
    )  # fmt: skip


def memory_of(run: Run) -> int:
    """Bytes of one layer in float32, before and after, and of the streams that stay in memory, at the least."""
    checkpoint = run.checkpoint
    layers: dict[int, int] = {}
    for name, tensor in checkpoint.tensors.items():
        layer = checkpoint.architecture.layer_of(name)
        if layer is not None:
            layers[layer] = layers.get(layer, 0) + tensor.elements
    hidden = checkpoint.architecture.dimensions(checkpoint.config).hidden
    streams = 4 * ALIVE * hidden * 2 * run.options.tokens  # as much held-out text as calibration text
    return 2 * 4 * max(layers.values()) + (streams if streams <= MEMORY_BYTES else 0)


def cut_streamed(run: Run, target: Path, *, speed: bool) -> PruneResult:
    """Cut without holding the model and write to ``target``, with the figures in its lineage.

    :raises UnsupportedError: when the strategy needs the whole model.
    :raises UsageError: when a text would have to be sampled from it.
    """
    options, checkpoint = run.options, run.checkpoint
    check_text(run)
    plan = plan_of(run)
    texts = load_texts(options, checkpoint)

    def finish(writer: CheckpointWriter, streamed: Streamed) -> PruneResult:
        assert streamed.heldout is not None
        written = Checkpoint.open(writer.directory)
        CheckpointLayers(written)  # holds its tensors against what transformers builds from its config
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


def _speed(run: Run, written: Checkpoint, asked: bool) -> dict[str, Any]:
    """Measure the speed where both models have room in memory, which is not why one streams."""
    if not asked:
        return {"speed_skipped": "--no-speed"}
    if should_stream(run.checkpoint):
        return {"speed_skipped": "the dense model takes more than half of the free memory"}
    dense, model = (c.load(dtype=torch.float32) for c in (run.checkpoint, written))
    return {"speed": compared(run, dense, model)}
