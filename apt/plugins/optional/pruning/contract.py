"""What a pruning strategy is: a class without arguments that previews a cut from headers and makes it in memory.

A plugin adds one with ``registry.add_component("strategy", "my-strategy", "my_package.module:MyStrategy")``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from apt.checkpoint.architecture import Architecture, Dimensions
from apt.plugins.optional.pruning.goals import Goal

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.texts import Rows
    from apt.plugins.optional.pruning.run import Run
    from apt.plugins.optional.pruning.streaming.streamed import StreamPlan

#: ``light``: a forward-only metric, no refit; ``fast``: least squares; ``full``: whole blocks are refitted.
Effort = Literal["light", "fast", "full"]


@dataclass(frozen=True)
class Task:
    """What a strategy is given.

    :param model: a transformers causal language model in float32 and evaluation mode; it must not be changed.
    :param rows: calibration rows.
    :param effort: how much time the strategy may take, where it has the choice.
    :param seed: of whatever the strategy draws.
    :param settings: the strategy's own options by name; its component's schema, a pydantic model, says which there are.
    :param work_dir: where a strategy that lasts may keep its state, so that the same call goes on after a kill.
    :param stored_dtype: torch dtype that the result is stored in, where bytes or speed are asked for; ``None`` for the
        model's own.
    """

    model: Any
    architecture: Architecture
    goal: Goal
    rows: "Rows"
    effort: Effort = "fast"
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    work_dir: Path | None = None
    stored_dtype: Any = None


@dataclass(frozen=True, slots=True)
class LayerCut:
    """What became of one layer of the dense model.

    :param place: its number in the cut model; ``None`` when it was dropped.
    :param stream_error: squared distance of the residual stream after it from the dense model's, relative to the
        latter's square, on the calibration rows; ``None`` where it was not measured.
    :param head_importance: for each dense query head, by how much the squared error of the attention's output
        (per token) rises when this head alone goes and the others are fitted again.
    """

    layer: int
    place: int | None
    heads_before: int
    heads_after: int
    kv_groups_before: int
    kv_groups_after: int
    ff_before: int
    ff_after: int
    removed_share: float
    stream_error: float | None = None
    kept_heads: tuple[int, ...] = ()
    head_importance: tuple[float, ...] = ()

    @classmethod
    def masked(cls, layer: int, sizes: Dimensions, removed_share: float, stream_error: float | None) -> "LayerCut":
        """Return what became of a layer in which weights are zero and all sizes stay."""
        same = (sizes.heads,) * 2 + (sizes.kv_heads,) * 2 + (sizes.ff,) * 2
        return cls(layer, layer, *same, removed_share=removed_share, stream_error=stream_error)


@dataclass(frozen=True, slots=True)
class PlanTrial:
    """A plan that was weighed against others.

    :param perplexity: measured on calibration rows that this trial was not fitted on; ``None`` when not measured.
    """

    plan: str
    dropped_layers: tuple[int, ...]
    removed_share: float
    perplexity: float | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one cut of one layer costs while all others stay dense, mended.

    :param axis: ``drop``, ``attention`` or ``mlp``.
    :param kept_share: of the axis's weights; 0 for a dropped layer.
    :param loss_rise: nats per token on rows that were not fitted.
    """

    layer: int
    axis: str
    kept_share: float
    loss_rise: float


@dataclass(frozen=True)
class Pruned:
    """What a strategy returns.

    :param model: the pruned model in float32, evaluation mode; another object than the task's.
    :param removed_share: share of the decoder's linear weights that is gone or zero, exactly.
    :param smaller: whether weights are truly gone (and not only zero).
    :param trials: plans that were weighed, best first.
    :param sensitivity: what single cuts cost, as far as it was measured for the choice of plans.
    :param fitted_perplexity: on the calibration rows that weights were fitted on; ``None`` when not measured.
    :param held_back_perplexity: on calibration rows that nothing was fitted on; the distance of the two is the overfit.
    """

    model: Any
    removed_share: float
    smaller: bool
    plan: str
    layers: tuple[LayerCut, ...]
    trials: tuple[PlanTrial, ...] = ()
    sensitivity: tuple[LayerCost, ...] = ()
    fitted_perplexity: float | None = None
    held_back_perplexity: float | None = None


@dataclass(frozen=True, slots=True)
class PlanPreview:
    """A plan as far as headers tell."""

    plan: str
    removed_share: float
    parameters: int
    size_bytes: int


class Strategy(Protocol):
    """The contract."""

    def preview(self, checkpoint: "Checkpoint", goal: Goal) -> list[PlanPreview]:
        """Return the plans that come into question, from headers only.

        :raises UnsupportedError: when the strategy does not know the architecture or cannot meet the goal.
        """
        ...

    def prune(self, task: Task) -> Pruned:
        """Make the cut, deterministically."""
        ...


@runtime_checkable
class StreamingStrategy(Protocol):
    """What a strategy has besides when it can work layer by layer from the files (``--stream``)."""

    def stream_plan(
        self, checkpoint: "Checkpoint", goal: Goal, *, effort: Effort, seed: int, settings: Mapping[str, Any]
    ) -> "StreamPlan":
        """Return what is to become of a checkpoint whose preview was accepted; only headers are read.

        :raises UnsupportedError: for an effort or a goal that needs the whole model.
        """
        ...


@runtime_checkable
class FileStrategy(Protocol):
    """What a strategy has beside :class:`Strategy` that cuts checkpoints by itself, of models that score no text."""

    def preview_files(self, run: "Run") -> PlanPreview:
        """Return what would be cut; nothing is written."""
        ...

    def prune_files(self, run: "Run") -> Any:
        """Write the cut checkpoint and return a result."""
        ...
