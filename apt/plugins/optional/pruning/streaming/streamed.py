"""Pruning that never holds the whole model: layer by layer from the files, written as it goes, resumable.

:func:`prune_streamed` takes a plan, which says what becomes of each tensor, and the texts. The calibration rows are
what the plan's method is fitted on; held-out rows only pass through, so that both models are measured in the same walk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from apt.checkpoint.reader import INDEX_NAME, Checkpoint
from apt.checkpoint.writer import CheckpointWriter, TensorSpec, package_versions
from apt.console.errors import BadInputError
from apt.console.progress import progress
from apt.evaluation.scoring import RowScores
from apt.plugins.optional.pruning.contract import LayerCut
from apt.plugins.optional.pruning.decoder.frame import Entry, Frame
from apt.plugins.optional.pruning.decoder.layers import CheckpointLayers
from apt.plugins.optional.pruning.decoder.trace import CalibrationBatch, calibration_batches
from apt.plugins.optional.pruning.streaming.drivers import LayerMethod, walk
from apt.plugins.optional.pruning.streaming.shards import SHARD_BYTES, Shards
from apt.plugins.optional.pruning.streaming.streams import MEMORY_BYTES, StreamPart, StreamPlace, Streams
from apt.plugins.optional.pruning.streaming.work_directory import WorkDirectory, check_room, key_of, opened

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

_Told = Sequence[tuple[int, Mapping[str, Any]]]
_Result = TypeVar("_Result")

#: Streams that are alive at a time: before and after a layer, of the dense and of the pruned model.
ALIVE: Final = 4


class StreamPlan(Protocol):
    """What is to become of a checkpoint."""

    text: str
    identity: Mapping[str, Any]

    @property
    def smaller(self) -> bool:
        """Whether weights go, and not only become zero."""
        ...

    def kept(self, layers: int) -> Sequence[int]:
        """Return the layers that stay, ascending."""
        ...

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the config of the output."""
        ...

    def shape(self, checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
        """Return the shape that a layer's tensor has in the output."""
        ...

    def method(self, checkpoint: Checkpoint, source: CheckpointLayers) -> LayerMethod:
        """Return what changes the blocks."""
        ...

    def layer_cuts(self, checkpoint: Checkpoint, told: _Told) -> Sequence[LayerCut]:
        """Return the cut layer by layer, dropped layers among them."""
        ...

    def removed_share(self, told: _Told) -> float:
        """Return the share of the decoder's linear weights that is gone or zero."""
        ...


@dataclass(frozen=True, slots=True)
class BothScores:
    """A text scored by the dense model and by the pruned one."""

    before: RowScores
    after: RowScores


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a streamed pruning did.

    :param heldout: ``None`` when no held-out rows were given.
    :param resumed_layers: layers that an interrupted run had finished.
    """

    plan: str
    removed_share: float
    smaller: bool
    layers: tuple[LayerCut, ...]
    calibration: BothScores
    heldout: BothScores | None
    resumed_layers: int


def prune_streamed(
    checkpoint: Checkpoint,
    target: Path,
    plan: StreamPlan,
    calibration: "Rows",
    finish: Callable[[CheckpointWriter, Streamed], _Result],
    *,
    heldout: "Rows | None" = None,
    options: Mapping[str, Any],
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    memory_bytes: int = MEMORY_BYTES,
) -> _Result:
    """Prune a checkpoint layer by layer; a run that was killed is gone on with by the same call.

    :param finish: called when the output is written but not yet at its place: the writer's ``directory`` can be read,
        its ``metrics`` set. What it returns is returned.
    :param options: for the lineage.
    :param memory_bytes: that streams may take; beyond it they go to files beside the output.
    :raises UsageError: when another process is at work on the same output.
    :raises CannotWriteError: when the disk is too small or full; the finished layers stay for the next run.
    """
    source = CheckpointLayers(checkpoint)
    layout = _Layout(checkpoint, source, plan)
    texts = [calibration] if heldout is None else [calibration, heldout]
    key = key_of({
        "model": checkpoint.digest(), "texts": [rows.digest for rows in texts], "plan": plan.text,
        "identity": plan.identity, "packages": package_versions(), "shard_bytes": shard_bytes,
    })  # fmt: skip
    with opened(target, key, lambda directory: Shards(directory, layout.specs, shard_bytes)) as work:
        resumed = len(work.done)
        batches = [calibration_batches(rows) for rows in texts]
        together = [batch for some in batches for batch in some]
        method = plan.method(checkpoint, source)
        hidden = checkpoint.architecture.dimensions(checkpoint.config).hidden
        space = StreamPlace.of(together, work.path, ALIVE * hidden, memory_bytes)
        check_room(work, ALIVE * space.stream_bytes(hidden))
        work.start()
        frame = source.frame()
        entries = _entries(frame, texts, batches)
        try:
            streams = walk(source, method, together, entries, space, work, fitted=len(batches[0]))
        except BadInputError:  # the model or the text is at fault: the same call would stop here again
            work.remove()
            raise
        del entries
        scores = _scores(frame, texts, batches, streams)
        layout.copy_rest(work)
        told = Streamed(
            plan.text, plan.removed_share(work.told), plan.smaller, tuple(plan.layer_cuts(checkpoint, work.told)),
            scores[0], scores[1] if heldout is not None else None, resumed,
        )  # fmt: skip
        with CheckpointWriter(
            target, operation="prune", parent=checkpoint, options=options, overwrite=overwrite
        ) as writer:
            layout.publish(writer, work)
            result = finish(writer, told)
        work.remove()
    return result


def tensor_specs(checkpoint: Checkpoint, plan: StreamPlan) -> list[TensorSpec]:
    """Return the tensors that the output of a plan will have; only headers are read."""
    return _Layout(checkpoint, CheckpointLayers(checkpoint), plan).specs


class _Layout:
    """Which tensors the output has, and where each comes from."""

    def __init__(self, checkpoint: Checkpoint, source: CheckpointLayers, plan: StreamPlan) -> None:
        self._checkpoint, self._config = checkpoint, plan.config(checkpoint)
        self._copied: list[str] = []
        self.specs: list[TensorSpec] = []
        architecture = checkpoint.architecture
        places = {layer: place for place, layer in enumerate(plan.kept(source.layers))}
        for name, tensor in checkpoint.tensors.items():
            layer = architecture.layer_of(name)
            if source.ignores(name) or (layer is not None and layer not in places):
                continue
            if layer is None:
                self._copied.append(name)
                self.specs.append(TensorSpec(name, tensor.dtype, tensor.shape))
            else:
                inner = name.removeprefix(architecture.layer_prefix.format(layer))
                renamed = architecture.layer_prefix.format(places[layer]) + inner
                self.specs.append(TensorSpec(renamed, tensor.dtype, plan.shape(checkpoint, name)))

    def copy_rest(self, work: WorkDirectory) -> None:
        """Copy the tensors outside the layers, as they are stored."""
        with progress("copying", len(self._copied), "tensors") as bar:
            for name in self._copied:
                work.shards.copy(name, self._checkpoint.tensors[name])
                bar.advance()
        work.shards.flush()

    def publish(self, writer: CheckpointWriter, work: WorkDirectory) -> None:
        """Put the files together."""
        for path in work.shards.paths:
            writer.adopt(path)
        index = work.shards.index()
        if index is not None:
            writer.write_json(INDEX_NAME, index)
        writer.write_json("config.json", self._config)
        writer.copy_side_files(self._checkpoint)


def _entries(frame: Frame, texts: "Sequence[Rows]", batches: Sequence[Sequence[CalibrationBatch]]) -> list[Entry]:
    return [
        frame.enter(batch.ids, source=rows.source) for rows, some in zip(texts, batches, strict=True) for batch in some
    ]


def _scores(
    frame: Frame,
    texts: "Sequence[Rows]",
    batches: Sequence[Sequence[CalibrationBatch]],
    streams: tuple[Streams, Streams],
) -> list[BothScores]:
    """Score each text by the streams after the last layer."""
    result, first = [], 0
    for rows, some in zip(texts, batches, strict=True):
        part = range(first, first + len(some))
        first += len(some)
        tokens = rows.counted.sum(dim=1).numpy()
        before, after = (RowScores(frame.row_nats(some, StreamPart(both, part)).numpy(), tokens) for both in streams)
        result.append(BothScores(before, after))
    return result
