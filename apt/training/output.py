"""What a run leaves: a stock checkpoint with its lineage, and the resolved config beside the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from apt.checkpoint.loading import quiet_transformers
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.output import to_jsonable
from apt.document import dump
from apt.training.config import TrainConfig

#: The resolved config beside the weights; it runs again as it is.
CONFIG_NAME: Final = "training.yaml"


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Round a model's parameters as storing them in ``dtype`` does, in place; they keep their own dtype.

    Buffers are left alone: what is not stored (the frequencies of positions) is computed anew by who loads the model.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))


def sources_of(model: Checkpoint, teacher: Checkpoint | None) -> list[Path]:
    """Return the directories around what a model is made of: it may be replaced by its child, they may not."""
    return [c.path.resolve().parent for c in (model, teacher) if c is not None]


def write_trained(
    target: Path,
    model: Any,
    *,
    operation: str,
    parent: Checkpoint,
    config: TrainConfig,
    record: Mapping[str, Any],
    lineage: Mapping[str, Any],
    metrics: Mapping[str, Any],
    overwrite: bool = False,
    teacher: Checkpoint | None = None,
) -> None:
    """Write a trained model in the dtype that its parent is stored in.

    :param operation: what made it, for ``apt.json``.
    :param parent: the checkpoint that was trained; its tokenizer goes along.
    :param record: what the run was made with, as its result has it.
    :param lineage: what else the model was made of (teacher, texts).
    :param metrics: figures that were measured, as plain values or results.
    :param teacher: what the model learned from; a target that holds it is not replaced.
    :raises TargetExistsError: when the target exists and ``overwrite`` is false.
    :raises CannotWriteError: when the disk is full; nothing is left then.
    """
    options = {**to_jsonable(dict(lineage)), **record}
    with (
        quiet_transformers(),
        CheckpointWriter(
            target,
            operation=operation,
            parent=parent,
            options=options,
            overwrite=overwrite,
            sources=sources_of(parent, teacher),
        ) as writer,
    ):
        model.to(parent.stored_dtype).save_pretrained(writer.directory)
        writer.copy_side_files(parent)
        (writer.directory / CONFIG_NAME).write_text(dump(config.resolved()), encoding="utf-8")
        writer.metrics.update(to_jsonable(dict(metrics)))
