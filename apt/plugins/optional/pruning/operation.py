"""The operation ``prune``: a checkpoint in, a smaller stock checkpoint out, with the figures that prove it."""

from typing import TYPE_CHECKING, Final

from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.contract import FileStrategy, StreamingStrategy
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.result import PrunePreview, PruneResult
from apt.plugins.optional.pruning.run import Run
from apt.plugins.optional.pruning.streaming.placing import placed
from apt.plugins.optional.pruning.texts import text_of
from apt.training.environment import check_alone

if TYPE_CHECKING:
    from apt.plugins.optional.pruning.cutting import Cutter
    from apt.plugins.optional.pruning.strategies.dependency_graph import GraphResult

#: Bytes of a value in memory: everything is computed in float32.
_VALUE_BYTES: Final = 4


def prune(options: PruneOptions) -> "PruneResult | GraphResult":
    """Prune a checkpoint.

    :raises UsageError: when several processes were started.
    :raises UnsupportedError: for an architecture, a strategy or a goal that cannot be met.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    :raises CheckFailedError: when what was written does not compute what was cut; nothing is left then.
    """
    check_alone("prune")
    run = Run.open(options)
    if isinstance(run.strategy, FileStrategy):
        return run.strategy.prune_files(_alone(run))
    run = placed(run)
    cutter = _cutter(run.options)
    if options.recover is None:
        return cutter(run, options.output, speed=options.speed)
    from apt.plugins.optional.pruning.recovery.recovering import cut_and_recover

    return cut_and_recover(run, cutter)


def _cutter(options: PruneOptions) -> "Cutter":
    """Return what makes the cut: in memory, or layer by layer. Only here is torch imported."""
    if options.stream:
        from apt.plugins.optional.pruning.streaming.cutting import cut_streamed

        return cut_streamed
    from apt.plugins.optional.pruning.cutting import cut

    return cut


def preview(options: PruneOptions) -> PrunePreview:
    """Say from headers what :func:`prune` would do, or refuse; nothing is loaded or written."""
    run = Run.open(options)
    if isinstance(run.strategy, FileStrategy):
        return _preview_of_files(_alone(run), run.strategy)
    run = placed(run)
    options, checkpoint = run.options, run.checkpoint
    if options.recover is not None:
        from apt.plugins.optional.pruning.recovery.recovering import check_recipe

        check_recipe(run)
    plans = run.plans
    if options.stream or (options.effort == "light" and isinstance(run.strategy, StreamingStrategy)):
        from apt.plugins.optional.pruning.streaming.cutting import check_text, memory_of, preview_streamed

        if options.stream:
            check_text(run)
        plans = (preview_streamed(run),)  # nothing is searched
    largest = max(plans, key=lambda plan: plan.size_bytes)
    dimensions = checkpoint.architecture.dimensions(checkpoint.config)
    activations = options.tokens * dimensions.hidden * (2 * dimensions.layers + 1)
    in_memory = _VALUE_BYTES * (checkpoint.parameters + largest.parameters + activations)
    text = text_of(options, checkpoint)
    return PrunePreview(
        model=checkpoint.name,
        output=options.output,
        strategy=options.strategy,
        goal=str(run.goal),
        asked_ratio=run.goal.share,
        calibration=text,
        heldout=options.heldout or text,
        parameters_before=checkpoint.parameters,
        size_bytes_before=checkpoint.size_bytes,
        plans=plans,
        read_bytes=checkpoint.size_bytes,
        memory_bytes=memory_of(run) if options.stream else in_memory,
        streamed=options.stream,
        disk_bytes=largest.size_bytes,
    )


def _alone(run: Run) -> Run:
    """Refuse what a strategy that works on files by itself does not go on with."""
    for name in ("recover", "stream", "heldout"):
        if getattr(run.options, name):
            raise UnsupportedError(f"the strategy {run.options.strategy} does not go with --{name}")
    return run


def _preview_of_files(run: Run, strategy: FileStrategy) -> PrunePreview:
    plan = strategy.preview_files(run)
    checkpoint = run.checkpoint
    return PrunePreview(
        model=checkpoint.name,
        output=run.options.output,
        strategy=run.options.strategy,
        goal=str(run.goal),
        asked_ratio=run.goal.share,
        calibration=run.options.calibration or "",
        heldout="",
        parameters_before=checkpoint.parameters,
        size_bytes_before=checkpoint.size_bytes,
        plans=(plan,),
        read_bytes=checkpoint.size_bytes,
        memory_bytes=_VALUE_BYTES * (checkpoint.parameters + plan.parameters),
        disk_bytes=plan.size_bytes,
    )
