"""Structured pruning: whole layers, KV groups with their query heads and ff channels go; the rest is fitted again."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from pydantic import Field

from apt.console.errors import BadInputError, UnsupportedError
from apt.options import Options
from apt.plugins.optional.pruning.blocks import Decoder, check_family, sizes_of
from apt.plugins.optional.pruning.budgets import budget_for, checkpoint_budget, decode_times
from apt.plugins.optional.pruning.decode_times import DecodeTimes
from apt.plugins.optional.pruning.footprint import Footprint
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.light import even_plan, light_cut
from apt.plugins.optional.pruning.plans import Budget, Sizes, removed_share
from apt.plugins.optional.pruning.reconstruct import Calibration, Cut, mean_loss, reconstruct
from apt.plugins.optional.pruning.refit import refit
from apt.plugins.optional.pruning.search import Trial, legal_shapes, search, searching_part
from apt.plugins.optional.pruning.sensitivity import Table, table_path
from apt.plugins.optional.pruning.strategies.base import Effort, LayerCut, PlanPreview, PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.surgery import build
from apt.plugins.optional.pruning.trace import trace

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint
    from apt.plugins.optional.pruning.streamed_cuts import CutPlan

#: With full effort so many of the best plans are refitted before one is chosen.
_REFITTED: Final = 3

#: Steps of the refit of a plan that is only weighed.
_TRIAL_STEPS: Final = 15


class StructuredSettings(Options):
    """What the strategy takes beside the goal."""

    per_layer: bool = Field(default=False, description="Sizes of their own for every layer; refused, see the docs.")


class StructuredStrategy:
    """Depth and width of Llama-like decoders, by measured loss, mended by sequential least squares."""

    def preview(self, checkpoint: "Checkpoint", goal: Goal) -> list[PlanPreview]:
        """Return the legal sizes that would be measured; see :class:`~.base.Strategy`."""
        architecture = checkpoint.architecture
        check_family(architecture)
        before = sizes_of(architecture, checkpoint.config)
        budget = checkpoint_budget(goal, checkpoint, before)
        found = legal_shapes(before, budget, goal, heads_divide_hidden=architecture.heads_divide_hidden)
        footprint = Footprint.of_checkpoint(checkpoint)
        return [
            PlanPreview(
                sizes.describe(), removed_share(before, sizes), footprint.parameters(sizes), footprint.size_bytes(sizes)
            )
            for sizes in found
        ]

    def prune(self, task: Task) -> Pruned:
        """Search, cut and mend; see :class:`~.base.Strategy`."""
        if task.settings.get("per_layer"):
            raise UnsupportedError(
                f"sizes per layer: no stock class of {task.architecture.model_type!r} has layers of unlike sizes, so "
                "plain from_pretrained could not load the result",
                hint="leave per_layer out: one size for all layers",
            )
        decoder = Decoder.of(task.model, task.architecture)
        before = sizes_of(task.architecture, task.model.config.to_dict())
        budget = _budget(task, before)
        if task.effort == "light":
            return _light(task, decoder, before, budget)
        candidates = legal_shapes(before, budget, task.goal, heads_divide_hidden=task.architecture.heads_divide_hidden)
        batches = trace(decoder, task.rows)
        try:
            table = Table(table_path(task.model, task.rows))
            trials = search(decoder, searching_part(batches), before, candidates, table)
            if task.effort == "full":
                trials = _refit_best(task, decoder, searching_part(batches), before, trials)
            best = trials[0]
            cut = reconstruct(decoder, Calibration(batches), before, best.sizes, best.dropped, measure=False).cut
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, missing from the stubs
            raise BadInputError(f"the least-squares problem cannot be solved: {error}") from error
        model = build(task.model, task.architecture, cut)
        if task.effort == "full":
            errors = refit(Decoder.of(model, task.architecture), cut, batches).errors
            blocks = tuple(replace(b, stream_error=e) for b, e in zip(cut.blocks, errors, strict=True))
            cut = replace(cut, blocks=blocks)
        return _pruned(model, cut, tuple(_told(trial, trial is best) for trial in trials))

    def stream_plan(
        self, checkpoint: "Checkpoint", goal: Goal, *, effort: Effort, seed: int, settings: Mapping[str, Any]
    ) -> "CutPlan":
        """Return the plan of a cut layer by layer: all layers stay, and nothing is searched.

        :raises UnsupportedError: for an effort that needs the whole model, or a goal that no such plan meets.
        """
        from apt.plugins.optional.pruning.streamed_cuts import CutPlan

        architecture = checkpoint.architecture
        check_family(architecture)
        before = sizes_of(architecture, checkpoint.config)
        budget = checkpoint_budget(goal, checkpoint, before)
        after = even_plan(before, budget, goal, heads_divide_hidden=architecture.heads_divide_hidden)
        return CutPlan.of(checkpoint, after, effort=effort)


def _light(task: Task, decoder: Decoder, before: Sizes, budget: Budget) -> Pruned:
    """Cut by one forward pass, without search and without a fit."""
    after = even_plan(before, budget, task.goal, heads_divide_hidden=task.architecture.heads_divide_hidden)
    cut = light_cut(decoder, task.rows, before, after)
    return _pruned(build(task.model, task.architecture, cut), cut, ())


def _budget(task: Task, before: Sizes) -> Budget:
    dtype = task.stored_dtype or task.model.dtype
    footprint = Footprint.of_model(task.model, task.architecture, dtype.itemsize)
    config = task.model.config.to_dict()

    def times() -> DecodeTimes:
        return decode_times(type(task.model), config, task.architecture, before, dtype)

    return budget_for(task.goal, before, footprint, times)


def _pruned(model: Any, cut: Cut, trials: tuple[PlanTrial, ...]) -> Pruned:
    return Pruned(
        model=model,
        removed_share=removed_share(cut.before, cut.after),
        smaller=True,
        plan=_describe(cut.after, cut.dropped),
        layers=layer_cuts(cut),
        trials=trials,
    )


def _refit_best(
    task: Task, decoder: Decoder, calibration: Calibration, before: Sizes, trials: list[Trial]
) -> list[Trial]:
    """Measure the best plans again with their blocks refitted, since refitting helps some cuts more than others."""
    measured = []
    for trial in trials[:_REFITTED]:
        cut = reconstruct(decoder, calibration, before, trial.sizes, trial.dropped, measure=False).cut
        pruned = Decoder.of(build(task.model, task.architecture, cut), task.architecture)
        streams = refit(pruned, cut, calibration.fitted, calibration.held_back, steps=_TRIAL_STEPS).streams
        first = len(calibration.fitted) if calibration.held_back else 0
        measured.append(replace(trial, loss=mean_loss(pruned, calibration.batches[first:], streams[first:])))
    return [*sorted(measured, key=lambda trial: trial.loss), *trials[_REFITTED:]]


def layer_cuts(cut: Cut) -> tuple[LayerCut, ...]:
    """Return the cut layer by layer, dropped layers among them."""
    before, after = cut.before, cut.after
    places = {block.layer: place for place, block in enumerate(cut.blocks)}
    result = []
    for layer in range(before.layers):
        dense = (before.heads, before.kv_groups, before.ff)
        place = places.get(layer)
        left = (0, 0, 0) if place is None else (after.heads, after.kv_groups, after.ff)
        block = None if place is None else cut.blocks[place]
        result.append(
            LayerCut(
                layer, place, dense[0], left[0], dense[1], left[1], dense[2], left[2],
                removed_share=1.0 if block is None else 1.0 - after.layer_weights / before.layer_weights,
                stream_error=block.stream_error if block else None,
                kept_heads=block.heads if block else (),
                head_importance=block.head_importance if block else (),
            )
        )  # fmt: skip
    return tuple(result)


def _told(trial: Trial, chosen: bool) -> PlanTrial:
    perplexity = math.exp(trial.loss) if trial.loss < 700 else math.inf
    return PlanTrial(_describe(trial.sizes, trial.dropped), trial.dropped, trial.removed_share, perplexity, chosen)


def _describe(sizes: Sizes, dropped: tuple[int, ...]) -> str:
    without = f" (without {', '.join(map(str, dropped))})" if dropped else ""
    return f"{sizes.describe()}{without}"
