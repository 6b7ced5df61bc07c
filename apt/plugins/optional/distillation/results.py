"""What ``distill`` found, as plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt.console.table import Table
from apt.evaluation.statistics import Estimate
from apt.training.result import CurvePoint


@dataclass(frozen=True, slots=True)
class Figures:
    """A model on the held-out rows.

    :param perplexity_ratio: its perplexity divided by the teacher's.
    :param kl: mean KL(teacher ‖ model) in nats per token; ``None`` where the vocabularies have other sizes.
    :param agreement: share of tokens, 0–1, where both have the same most likely token.
    """

    perplexity: Estimate
    perplexity_ratio: float
    kl: Estimate | None
    agreement: Estimate | None


@dataclass(frozen=True, slots=True)
class Control:
    """The same student trained on cross-entropy alone: same steps, rows, order, optimizer and seed."""

    figures: Figures
    curve: tuple[CurvePoint, ...]
    best_step: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DistillResult:
    """A distilled student.

    :param curve: evaluations of the run, the first one of the student as it came.
    :param metrics: figures of the last interval by their fixed names.
    :param control: present when it was asked for.
    """

    path: Path
    teacher: str
    student: str
    text: str
    heldout_text: str
    heldout_tokens: int
    parameters: int
    teacher_parameters: int
    teacher_perplexity: Estimate
    before: Figures
    after: Figures
    control: Control | None
    curve: tuple[CurvePoint, ...]
    best_step: int
    steps: int
    tokens: int
    seconds: float
    metrics: dict[str, float]
    config: dict[str, Any]

    def tables(self) -> list[Table]:
        """Return the states beside one another, and the run."""
        rows = [
            ["teacher", self.teacher_perplexity.format(), "1.000", "", ""],
            _row("student before", self.before),
            _row("student after", self.after),
        ]
        if self.control is not None:
            rows.append(_row("control (cross-entropy)", self.control.figures))
        columns = ["state", "perplexity", "× teacher", "KL to teacher", "agreement"]
        facts = [
            ["output", str(self.path)],
            ["parameters", f"{self.parameters:,} of the teacher's {self.teacher_parameters:,}"],
            ["steps", f"{self.steps:,} (best {self.best_step:,})"],
            ["tokens", f"{self.tokens:,}"],
            ["seconds", f"{self.seconds:.1f}"],
            ["text", self.text],
            ["held-out", f"{self.heldout_text}, {self.heldout_tokens:,} tokens"],
        ]
        return [Table("", columns, rows), Table("", ["run", ""], facts)]


def _row(state: str, figures: Figures) -> list[str]:
    kl = figures.kl.format(4) if figures.kl is not None else ""
    agreement = figures.agreement.format() if figures.agreement is not None else ""
    return [state, figures.perplexity.format(), f"{figures.perplexity_ratio:.3f}", kl, agreement]


@dataclass(frozen=True, slots=True)
class DistillPlan:
    """What ``distill --dry-run`` tells: nothing was loaded or written."""

    teacher: str
    student: str
    output: Path
    text: str
    shared_vocab: int
    config: dict[str, Any]

    def tables(self) -> list[Table]:
        """Return the plan."""
        train = self.config["train"]
        rows = [
            ["teacher", self.teacher],
            ["student", self.student],
            ["output", str(self.output)],
            ["text", self.text],
            ["ids compared", f"{self.shared_vocab:,}"],
        ]
        rows += [[key, _flat(value)] for key, value in train.items()]
        return [Table("", ["plan", ""], rows)]


def _flat(value: Any) -> str:
    """A setting in one line; what is not set is left out."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{k} ({_flat(v)})" if isinstance(v, dict) else f"{k} {v}" for k, v in value.items() if v is not None
    )
