"""Structured pruning: layers, KV groups with their query heads, ff and hidden channels go; the rest is fitted again."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from apt.checkpoint.architecture import Architecture
from apt.console import output as console
from apt.console.errors import UnsupportedError
from apt.options import Options
from apt.plugins.optional.pruning.contract import Effort, PlanPreview, PlanTrial, Pruned, Task
from apt.plugins.optional.pruning.decoder.blocks import Decoder, check_family, sizes_of
from apt.plugins.optional.pruning.decoder.leastsquares import solvable
from apt.plugins.optional.pruning.decoder.sizes import Sizes, describe_plan, removed_share
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.structure.budgets import budget_for, checkpoint_budget, decode_times
from apt.plugins.optional.pruning.structure.decode_times import DecodeTimes
from apt.plugins.optional.pruning.structure.footprint import Footprint
from apt.plugins.optional.pruning.structure.hidden import Widths
from apt.plugins.optional.pruning.structure.layer_cuts import layer_cuts
from apt.plugins.optional.pruning.structure.legality import narrower
from apt.plugins.optional.pruning.structure.light import even_plan, light_cut
from apt.plugins.optional.pruning.structure.plans import Budget
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, Cut, mean_loss, reconstruct
from apt.plugins.optional.pruning.structure.refit import refit
from apt.plugins.optional.pruning.structure.search import Trial, legal_shapes, search, searching_part
from apt.plugins.optional.pruning.structure.sensitivity import Sensitivity, Table, table_path
from apt.plugins.optional.pruning.structure.surgery import build

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint
    from apt.plugins.optional.pruning.streaming.cuts import CutPlan

#: With full effort so many of the plans are refitted before one is chosen.
_REFITTED: Final = 4

#: Steps of the refit of a plan that is only weighed.
_TRIAL_STEPS: Final = 15


class StructuredSettings(Options):
    """What the strategy takes beside the goal."""

    per_layer: bool = Field(default=False, description="Sizes of their own for every layer; refused, see the docs.")


class StructuredStrategy:
    """Depth and width of Llama-like decoders, by measured loss, mended by sequential least squares."""

    def preview(self, checkpoint: "Checkpoint", goal: Goal) -> list[PlanPreview]:
        """Return the legal sizes that would be measured; see :class:`~..contract.Strategy`."""
        architecture = checkpoint.architecture
        check_family(architecture)
        before = sizes_of(architecture, checkpoint.config)
        budget = checkpoint_budget(goal, checkpoint, before)
        found = _legal(before, budget, goal, architecture)
        footprint = Footprint.of_checkpoint(checkpoint)
        return [
            PlanPreview(
                sizes.describe(), removed_share(before, sizes), footprint.parameters(sizes), footprint.size_bytes(sizes)
            )
            for sizes in found
        ]

    def prune(self, task: Task) -> Pruned:
        """Search, cut and mend; see :class:`~..contract.Strategy`."""
        _check_uniform(task.settings, task.architecture)
        decoder = Decoder.of(task.model, task.architecture)
        before = sizes_of(task.architecture, task.model.config.to_dict())
        budget = _budget(task, before)
        if task.effort == "light":
            return _light(task, decoder, before, budget)
        candidates = _legal(before, budget, task.goal, task.architecture)
        batches = trace(decoder, task.rows)
        searched = Widths(decoder, task.architecture, searching_part(batches), before)
        if not searched.dense.calibration.held_back:
            console.warn(
                f"the text {task.rows.source!r} has {task.rows.tokens:,} tokens: plans are measured on the rows that "
                "they are fitted on; give more --tokens"
            )
        with solvable():
            table = Table(table_path(task.model, task.rows))
            trials = search(searched, candidates, table)
            if task.effort == "full":
                trials = _refit_best(searched, trials)
            best = trials[0]
            at = Widths(decoder, task.architecture, Calibration(batches), before).at(best.sizes.hidden)
            cut = reconstruct(at.decoder, at.calibration, at.sizes, best.sizes, best.dropped, measure=False).cut
        model = build(at.decoder.model, task.architecture, cut)
        if task.effort == "full":
            errors = refit(Decoder.of(model, task.architecture), cut, at.calibration.fitted).errors
            blocks = tuple(replace(b, stream_error=e) for b, e in zip(cut.blocks, errors, strict=True))
            cut = replace(cut, blocks=blocks)
        told = tuple(_told(trial, trial is best) for trial in trials)
        fitted = None if best.fitted_loss is None else _perplexity(best.fitted_loss)
        return replace(
            _pruned(model, replace(cut, before=before), told),
            sensitivity=Sensitivity(searched, candidates, table).costs(),
            fitted_perplexity=fitted,
            held_back_perplexity=told[0].perplexity if fitted is not None else None,
        )

    def stream_plan(
        self, checkpoint: "Checkpoint", goal: Goal, *, effort: Effort, seed: int, settings: Mapping[str, Any]
    ) -> "CutPlan":
        """Return the plan of a cut layer by layer: all layers stay, and nothing is searched.

        :raises UnsupportedError: for an effort that needs the whole model, or a goal that no such plan meets.
        """
        from apt.plugins.optional.pruning.streaming.cuts import CutPlan

        architecture = checkpoint.architecture
        check_family(architecture)
        _check_uniform(settings, architecture)
        before = sizes_of(architecture, checkpoint.config)
        budget = checkpoint_budget(goal, checkpoint, before)
        after = even_plan(before, budget, goal, heads_divide_hidden=architecture.heads_divide_hidden)
        return CutPlan.of(checkpoint, after, effort=effort)


def _legal(before: Sizes, budget: Budget, goal: Goal, architecture: Architecture) -> list[Sizes]:
    """Return the sizes worth measuring; for a speed only those of the dense hidden size, whose times are known."""
    return legal_shapes(
        before, budget, goal, heads_divide_hidden=architecture.heads_divide_hidden,
        narrower=() if goal.speed is not None else narrower(before),
    )  # fmt: skip


def _check_uniform(settings: Mapping[str, Any], architecture: Architecture) -> None:
    """Refuse sizes per layer."""
    if settings.get("per_layer"):
        raise UnsupportedError(
            f"sizes per layer: no stock class of {architecture.model_type!r} has layers of unlike sizes, so "
            "plain from_pretrained could not load the result",
            hint="leave per_layer out: one size for all layers",
        )


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
        plan=describe_plan(cut.after, cut.dropped),
        layers=layer_cuts(cut),
        trials=trials,
    )


def _refit_best(widths: Widths, trials: list[Trial]) -> list[Trial]:
    """Measure the best plans again with their blocks refitted, since refitting helps some cuts more than others."""
    finalists = _finalists(trials)
    measured = []
    for trial in sorted(finalists, key=lambda trial: -trial.sizes.hidden):  # only one narrow decoder is kept
        at = widths.at(trial.sizes.hidden)
        cut = reconstruct(at.decoder, at.calibration, at.sizes, trial.sizes, trial.dropped, measure=False).cut
        pruned = Decoder.of(build(at.decoder.model, widths.architecture, cut), widths.architecture)
        streams = refit(pruned, cut, at.calibration.fitted, at.calibration.held_back, steps=_TRIAL_STEPS).streams
        fitted = len(at.calibration.fitted)
        first = fitted if at.calibration.held_back else 0
        loss = mean_loss(pruned, at.calibration.batches[first:], streams[first:])
        fitted_loss = mean_loss(pruned, at.calibration.fitted, streams[:fitted])
        measured.append(replace(trial, loss=loss, fitted_loss=fitted_loss))
    return [*sorted(measured, key=_by_loss), *(trial for trial in trials if trial not in finalists)]


def _finalists(trials: list[Trial]) -> list[Trial]:
    """The plans to refit: the best of every number of layers, then the next best, :data:`_REFITTED` in all.

    A refit makes up for lost width far better than for lost layers, which least squares alone does not show.
    """
    first = {trial.sizes.layers: trial for trial in reversed(trials)}
    leading = [trial for trial in trials if first[trial.sizes.layers] is trial]
    others = [trial for trial in trials if first[trial.sizes.layers] is not trial]
    return [*leading, *others][:_REFITTED]


def _told(trial: Trial, chosen: bool) -> PlanTrial:
    plan = describe_plan(trial.sizes, trial.dropped)
    return PlanTrial(plan, trial.dropped, trial.removed_share, _perplexity(trial.loss), chosen)


def _perplexity(nats: float) -> float:
    """Perplexity of a mean loss; infinite where it is no finite number."""
    return math.exp(nats) if nats < 700 else math.inf


def _by_loss(trial: Trial) -> float:
    """Key by which a plan whose loss is not a number comes last."""
    return trial.loss if math.isfinite(trial.loss) else math.inf
