"""What ``train`` plans and what it found, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt.console.table import Table
from apt.evaluation.statistics import Estimate
from apt.training.result import CurvePoint


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A trained model.

    :param before: perplexity of the evaluation rows, of the model as it came; ``after`` of what is written.
    :param ratio: ``after`` divided by ``before`` with a paired interval over the rows.
    :param curve: evaluations of the run, the first one of the model as it came.
    :param metrics: figures of the last interval by their fixed names.
    :param run_dir: where trackers' files and kept states are; ``None`` when nothing stays.
    """

    path: Path
    model: str
    teacher: str | None
    parameters: int
    eval_rows: int
    eval_tokens: int
    before: Estimate
    after: Estimate
    ratio: Estimate
    curve: tuple[CurvePoint, ...]
    best_step: int
    best_eval_loss: float
    steps: int
    skipped_steps: int
    tokens: int
    seconds: float
    metrics: dict[str, float]
    run_dir: Path | None
    config_sha256: str
    config: dict[str, Any]

    def tables(self) -> list[Table]:
        """Return the figures before and after, and the run."""
        states = [
            ["as it came", self.before.format(), "1.000"],
            ["trained", self.after.format(), self.ratio.format()],
        ]
        facts = [
            ["output", str(self.path)],
            ["model", self.model],
            *([["teacher", self.teacher]] if self.teacher is not None else []),
            ["parameters", f"{self.parameters:,}"],
            ["steps", f"{self.steps:,} (best {self.best_step:,})"],
            *([["steps skipped", f"{self.skipped_steps:,}"]] if self.skipped_steps else []),
            ["tokens", f"{self.tokens:,}"],
            ["seconds", f"{self.seconds:.1f}"],
            ["evaluated on", f"{self.eval_rows:,} rows, {self.eval_tokens:,} tokens"],
            *([["run directory", str(self.run_dir)]] if self.run_dir is not None else []),
        ]
        return [Table("", ["model", "perplexity", "ratio"], states), Table("", ["run", ""], facts)]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What ``train --dry-run`` tells: nothing was loaded or written.

    :param rows_per_step: of all micro-batches and processes.
    """

    model: str
    teacher: str | None
    output: Path
    run_dir: Path
    parameters: int
    rows_per_step: int
    config_sha256: str
    config: dict[str, Any]

    def tables(self) -> list[Table]:
        """Return the plan."""
        rows = [
            ["model", self.model],
            *([["teacher", self.teacher]] if self.teacher is not None else []),
            ["output", str(self.output)],
            ["run directory", str(self.run_dir)],
            ["parameters", f"{self.parameters:,}"],
            ["rows a step", f"{self.rows_per_step:,}"],
            ["config", self.config_sha256],
        ]
        for section in ("data", "train", "tracking"):
            values = self.config.get(section) or {}
            rows += [[f"{section}.{key}", setting(v)] for key, v in values.items() if v is not None]
        return [Table("", ["plan", ""], rows)]


def setting(value: Any) -> str:
    """Return a setting in one line; what is not set is left out."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(
        f"{k} ({setting(v)})" if isinstance(v, Mapping) else f"{k} {setting(v)}"
        for k, v in value.items()
        if v is not None
    )
