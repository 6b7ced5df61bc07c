"""What planning and running a recipe return."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any, Literal

from apt.console.table import Table

Action = Literal["run", "cached"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What would be done with a step, and why."""

    name: str
    operation: str
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``--dry-run`` shows."""

    recipe: str
    out: Path
    steps: tuple[PlannedStep, ...]

    def tables(self) -> list[Table]:
        """Return one table: a row per step."""
        rows = [(s.name, s.operation, s.action, s.reason) for s in self.steps]
        return [Table(f"{self.recipe} → {self.out}", ("step", "operation", "would", "because"), rows)]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """A step that is done.

    :param seconds: wall time of the operation when it ran, now or earlier.
    :param result: the operation's result as plain values.
    """

    name: str
    operation: str
    action: Action
    reason: str
    seconds: float
    key: str
    result: Any


@dataclass(frozen=True)
class RunResult:
    """A recipe that is done; ``seconds`` is the wall time of this run.

    :param last_tables: the tables of the last step, which are what the recipe was run for.
    """

    recipe: str
    out: Path
    seconds: float
    steps: tuple[StepOutcome, ...]
    last_tables: InitVar[Sequence[Table]] = ()

    def __post_init__(self, last_tables: Sequence[Table]) -> None:
        object.__setattr__(self, "_last_tables", tuple(last_tables))

    def tables(self) -> list[Table]:
        """Return the steps, then the tables of the last one."""
        word = {"run": "ran", "cached": "unchanged"}
        rows = [(s.name, s.operation, word[s.action], f"{s.seconds:.1f}") for s in self.steps]
        steps = Table(f"{self.recipe}: {self.seconds:.1f} s → {self.out}", ("step", "operation", "", "seconds"), rows)
        shown: tuple[Table, ...] = getattr(self, "_last_tables")  # noqa: B009 - set past the frozen dataclass
        return [steps, *shown]
