"""The operation ``prune``: a checkpoint in, a smaller stock checkpoint out, with the figures that prove it."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.atomic import check_target
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import CheckpointWriter
from apt.console.errors import NotFoundError, UnsupportedError, UsageError
from apt.console.output import to_jsonable
from apt.evaluation.checking import check_text_ref
from apt.evaluation.memory import peak_rss_bytes
from apt.evaluation.speed import compare_speed
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.measure import (
    cast_weights,
    logit_difference,
    nonzero_parameters,
    probe_logits,
    text_figures,
)
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.result import PrunePreview, PruneResult
from apt.plugins.optional.pruning.strategies.base import Pruned, Strategy, Task
from apt.plugins.optional.pruning.texts import Texts, load_texts, text_of

if TYPE_CHECKING:
    import torch

    from apt.registry import Component

#: Names that users know and that this version does not bring.
_PLANNED: Final = ("taylor", "lottery", "dynamic", "unstructured", "wanda", "sparsegpt")

#: Bytes of a value in memory: everything is computed in float32.
_VALUE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class _Begun:
    """When a run began, by the clock and by the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "_Begun":
        return cls(time.monotonic(), time.process_time())


def prune(options: PruneOptions) -> PruneResult:
    """Prune a checkpoint.

    :raises UnsupportedError: for an architecture, a strategy or a goal that cannot be met.
    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    :raises CheckFailedError: when what was written does not compute what was cut; nothing is left then.
    """
    begun = _Begun.now()
    strategy, settings = find_strategy(options.strategy), settings_of(options)
    checkpoint = _opened(options)
    goal = options.goal(checkpoint)
    strategy.preview(checkpoint, goal)  # refuses before anything is loaded
    model: Any = checkpoint.load(dtype=_float32())
    texts = load_texts(options, checkpoint, model)
    pruned = strategy.prune(
        Task(
            model, checkpoint.architecture, goal, texts.calibration, options.effort, seed=options.seed,
            settings=settings,
        )
    )  # fmt: skip
    return _written(options, checkpoint, goal, model, pruned, texts, begun)


def preview(options: PruneOptions) -> PrunePreview:
    """Say from headers what :func:`prune` would do; nothing is loaded or written."""
    strategy = find_strategy(options.strategy)
    settings_of(options)
    checkpoint = _opened(options)
    goal = options.goal(checkpoint)
    plans = tuple(strategy.preview(checkpoint, goal))
    largest = max(plans, key=lambda plan: plan.size_bytes)
    dimensions = checkpoint.architecture.dimensions(checkpoint.config)
    activations = options.tokens * dimensions.hidden * (2 * dimensions.layers + 1)
    text = text_of(options, checkpoint)
    return PrunePreview(
        model=checkpoint.name,
        output=options.output,
        strategy=options.strategy,
        goal=str(goal),
        asked_ratio=goal.share,
        calibration=text,
        heldout=options.heldout or text,
        parameters_before=checkpoint.parameters,
        size_bytes_before=checkpoint.size_bytes,
        plans=plans,
        read_bytes=checkpoint.size_bytes,
        memory_bytes=_VALUE_BYTES * (checkpoint.parameters + largest.parameters + activations),
        disk_bytes=largest.size_bytes,
    )


def _opened(options: PruneOptions) -> Checkpoint:
    """Open the model, having refused what can be refused before it."""
    for name in ("recover", "stream"):
        if getattr(options, name):
            raise UnsupportedError(f"--{name} is not in this version")
    for text in (options.calibration, options.heldout):
        if text is not None:
            check_text_ref(text)
    checkpoint = Checkpoint.open(options.model)
    check_target(options.output, overwrite=options.overwrite, sources=[checkpoint.path.resolve().parent])
    return checkpoint


def find_strategy(name: str) -> Strategy:
    """Return a strategy by its component name.

    :raises UnsupportedError: for one that is planned but not in this version.
    :raises NotFoundError: for a name that nobody registered.
    """
    strategy: Strategy = _component(name).load()()
    return strategy


def settings_of(options: PruneOptions) -> dict[str, Any]:
    """Validate the strategy's own settings by the schema of its component; defaults are filled in.

    :raises UsageError: for a setting that the strategy does not have, or a value that is not right.
    """
    from pydantic import ValidationError

    component = _component(options.strategy)
    if not component.schema:
        if options.settings:
            raise UsageError(f"--set {next(iter(options.settings))}: the strategy {options.strategy} has no settings")
        return {}
    schema = component.load_schema()
    try:
        found: dict[str, Any] = schema.model_validate(options.settings).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        hint = f"{options.strategy} has {', '.join(schema.model_fields)}"
        raise UsageError(f"--set {name}={first['input']}: {message}", hint=hint) from None
    return found


def _component(name: str) -> "Component":
    from apt.plugins.host import current

    registry = current().registry()
    try:
        return registry.get("strategy", name)
    except NotFoundError:
        if name not in _PLANNED:
            raise
        known = ", ".join(registry.names("strategy"))
        raise UnsupportedError(f"the strategy {name!r} is not in this version", hint=f"there are {known}") from None


def _written(
    options: PruneOptions, checkpoint: Checkpoint, goal: Goal, dense: Any, pruned: Pruned, texts: Texts, begun: _Begun
) -> PruneResult:
    """Measure the weights as they will be stored, write them, read them again before they appear, and tell."""
    from apt.training.output import round_weights

    stored = checkpoint.stored_dtype
    model, pruned = pruned.model, replace(pruned, model=None)
    round_weights(model, stored)
    calibration = text_figures(dense, model, texts.calibration)
    heldout = text_figures(dense, model, texts.heldout)
    logits = probe_logits(model, texts.heldout)
    with CheckpointWriter(
        options.output, operation="prune", parent=checkpoint, options=options.model_dump(mode="json"),
        overwrite=options.overwrite,
    ) as writer:  # fmt: skip
        writer.write_model(cast_weights(model, stored), checkpoint)
        del model
        written = Checkpoint.open(writer.directory)
        again: Any = written.load(dtype=_float32())
        apart = logit_difference(logits, again, texts.heldout)
        speed = compare_speed(cast_weights(dense, stored), cast_weights(again, stored)) if options.speed else None
        result = PruneResult(
            path=options.output,
            model=checkpoint.name,
            strategy=options.strategy,
            goal=str(goal),
            asked_ratio=goal.share,
            removed_share=pruned.removed_share,
            smaller=pruned.smaller,
            plan=pruned.plan,
            parameters_before=checkpoint.parameters,
            parameters_after=written.parameters,
            nonzero_before=nonzero_parameters(checkpoint),
            nonzero_after=nonzero_parameters(written),
            size_bytes_before=checkpoint.size_bytes,
            size_bytes_after=written.size_bytes,
            calibration=calibration,
            heldout=heldout,
            gap_nats=heldout.test.difference.value - calibration.test.difference.value,
            speed=speed,
            speed_skipped="" if options.speed else "--no-speed",
            max_logit_difference=apart,
            reload_skipped="",
            layers=pruned.layers,
            trials=pruned.trials,
            peak_rss_bytes=peak_rss_bytes(),
            cpu_seconds=time.process_time() - begun.cpu,
            seconds=time.monotonic() - begun.wall,
        )
        writer.metrics.update(_metrics(result))
    return result


def _metrics(result: PruneResult) -> dict[str, Any]:
    """Return what the lineage keeps of a result."""
    told = (
        "strategy", "plan", "goal", "removed_share", "parameters_after", "nonzero_after", "heldout", "calibration",
        "gap_nats", "speed", "max_logit_difference",
    )  # fmt: skip
    return {name: to_jsonable(getattr(result, name)) for name in told}


def _float32() -> "torch.dtype":
    import torch

    return torch.float32
