"""What the strategies that only set weights to zero have in common: goals, previews, the count of what is gone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from apt.checkpoint.architecture import Architecture
from apt.console.errors import UnsupportedError
from apt.evaluation.scoring import score_rows
from apt.plugins.optional.pruning.contract import Effort, LayerCut, PlanPreview, Pruned, Task
from apt.plugins.optional.pruning.decoder.block_work import BlockMethod, BlockWork
from apt.plugins.optional.pruning.decoder.layers import LINEAR_ROLES, linear_modules
from apt.plugins.optional.pruning.decoder.leastsquares import solvable
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.masks.driver import feed, layers_of, walk
from apt.plugins.optional.pruning.masks.linear import weight_of
from apt.plugins.optional.pruning.masks.pattern import Wanted, check_groups

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.texts import Rows
    from apt.plugins.optional.pruning.streaming.masks import MaskPlan


class MaskStrategy:
    """A strategy that takes a ratio or a pattern and leaves all sizes as they are; see :class:`~.contract.Strategy`."""

    #: The component's name.
    name: ClassVar[str]
    #: What it does, for people.
    plan: ClassVar[str]

    def preview(self, checkpoint: "Checkpoint", goal: Goal) -> list[PlanPreview]:
        """Return the one plan: sizes stay."""
        architecture = checkpoint.architecture
        architecture.check_uniform("pruning")
        wanted = wanted_of(goal, self.name)
        if isinstance(wanted, Pattern):
            for name, tensor in checkpoint.tensors.items():
                if architecture.role_of(name) in LINEAR_ROLES and len(tensor.shape) == 2:
                    check_groups(wanted, tensor.shape[0 if architecture.transposed else 1])
        share = wanted.share if isinstance(wanted, Pattern) else wanted
        tensor_bytes = sum(tensor.size_bytes for tensor in checkpoint.tensors.values())
        return [PlanPreview(self.plan, share, checkpoint.parameters, tensor_bytes)]


class BlockStrategy(MaskStrategy, ABC):
    """A mask strategy that needs one block at a time: in memory, or streamed from the files."""

    @abstractmethod
    def block_method(self, wanted: Wanted, effort: Effort) -> BlockMethod:
        """Return what prunes one block in work; the same for a model in memory and one that is streamed."""

    def stream_plan(
        self, checkpoint: "Checkpoint", goal: Goal, *, effort: Effort, seed: int, settings: Mapping[str, Any]
    ) -> "MaskPlan":
        """Return the plan of the same method layer by layer."""
        from apt.plugins.optional.pruning.streaming.masks import MaskPlan

        checkpoint.architecture.check_uniform("pruning")
        method = self.block_method(wanted_of(goal, self.name), effort)

        def prune_block(work: BlockWork) -> None:
            with solvable():
                method(work)

        return MaskPlan.of(prune_block, self.plan, goal, strategy=self.name, effort=effort, seed=seed)

    def prune(self, task: Task) -> Pruned:
        """Zero the weights of a copy, block by block."""
        task.architecture.check_uniform("pruning")
        method = self.block_method(wanted_of(task.goal, self.name), task.effort)
        feeds = feed(task.model, task.architecture, task.rows)
        with solvable():
            walked = walk(task.model, task.architecture, feeds, method)
        return outcome(task, walked.model, self.plan, walked.errors)


def wanted_of(goal: Goal, strategy: str) -> Wanted:
    """Return the share or pattern that is asked of every matrix.

    :raises UnsupportedError: for a goal that zeros cannot meet.
    """
    if goal.pattern is not None:
        return goal.pattern
    if goal.ratio is not None:
        return goal.ratio
    raise UnsupportedError(
        f"the strategy {strategy} cannot give {goal}: zeros save neither bytes nor time",
        hint="it takes --ratio or --pattern; --strategy structured takes sizes",
    )


def zeros_by_layer(model: Any, architecture: Architecture) -> list[tuple[int, int]]:
    """Return for each layer how many weights of its linear matrices are zero, and how many there are."""
    counts = []
    for layer in layers_of(model, architecture):
        weights = [weight_of(m, architecture.transposed) for m in linear_modules(layer, architecture).values()]
        counts.append((sum(int((w == 0.0).sum()) for w in weights), sum(w.numel() for w in weights)))
    return counts


def outcome(task: Task, model: Any, plan: str, errors: tuple[float, ...] | None = None, **more: Any) -> Pruned:
    """Count the zeros and tell."""
    counts = zeros_by_layer(model, task.architecture)
    sizes = task.architecture.dimensions(model.config.to_dict())
    cuts = tuple(
        LayerCut.masked(i, sizes, zeros / total, errors[i] if errors else None)
        for i, (zeros, total) in enumerate(counts)
    )
    share = sum(zeros for zeros, _ in counts) / max(1, sum(total for _, total in counts))
    return Pruned(model, share, smaller=False, plan=plan, layers=cuts, **more)


def mean_perplexity(model: Any, rows: "Rows") -> float:
    """Return the perplexity over all counted tokens."""
    scores = score_rows(model, rows)
    mean = float(scores.nll.sum() / scores.tokens.sum())
    return math.exp(mean) if mean < 700.0 else math.inf
