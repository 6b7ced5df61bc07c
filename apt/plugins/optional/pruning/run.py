"""A pruning that was asked for: the model by its headers, the strategy with its settings, the goal in figures."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.checkpoint.atomic import check_target
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UsageError
from apt.evaluation.checking import check_text_ref
from apt.plugins.optional.pruning.contract import PlanPreview, Strategy
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.options import PruneOptions

if TYPE_CHECKING:
    from apt.registry import Component


@dataclass(frozen=True)
class Run:
    """What is to be done; made by :meth:`open`, which refuses what can be refused before weights are read.

    :param settings: the strategy's own, whole.
    :param plans: what the strategy would weigh.
    :param began: seconds by the clock; ``began_cpu`` by the processor.
    """

    options: PruneOptions
    checkpoint: Checkpoint
    strategy: Strategy
    settings: dict[str, Any]
    goal: Goal
    plans: tuple[PlanPreview, ...]
    began: float = field(default_factory=time.monotonic)
    began_cpu: float = field(default_factory=time.process_time)

    @property
    def work_dir(self) -> Path:
        """Where state is kept that a call after a kill goes on from: hidden, beside the output."""
        output = self.options.output.absolute()
        return output.with_name(f".{output.name}.run")

    @classmethod
    def open(cls, options: PruneOptions) -> "Run":
        """Read headers, and check everything that they and the options tell.

        :raises UnsupportedError: for an architecture, a strategy or a goal that cannot be met.
        :raises TargetExistsError: when the output exists and ``overwrite`` is false.
        """
        strategy, settings = find_strategy(options.strategy), settings_of(options)
        for text in (options.calibration, options.heldout):
            if text is not None:
                check_text_ref(text)
        checkpoint = Checkpoint.open(options.model)
        check_target(options.output, overwrite=options.overwrite, sources=_sources(options, checkpoint))
        goal = options.goal(checkpoint)
        return cls(options, checkpoint, strategy, settings, goal, tuple(strategy.preview(checkpoint, goal)))


def _sources(options: PruneOptions, checkpoint: Checkpoint) -> list[Path]:
    """Return what an output may not replace. A cut may replace its model; recovery still learns from the model."""
    model = checkpoint.path.resolve()
    read = [Path(text) for text in (options.calibration, options.heldout, options.recover) if text is not None]
    return [model if options.recover else model.parent, *(path for path in read if path.exists())]


def find_strategy(name: str) -> Strategy:
    """Return a strategy by its component name.

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
        given = f" {name}={first['input']}" if name else ""  # else of several settings together
        raise UsageError(f"--set{given}: {message}", hint=hint) from None
    return found


def _component(name: str) -> "Component":
    from apt.plugins.host import current

    return current().registry().get("strategy", name)
