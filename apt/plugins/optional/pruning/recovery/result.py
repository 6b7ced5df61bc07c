"""What a recovery tells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt.console.table import Table
from apt.evaluation.statistics import Estimate
from apt.training.result import CurvePoint


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """A recovered checkpoint.

    :param rows: that were trained on; ``None`` for a stream.
    :param perplexity_parent: of the dense parent on the rows set aside, which were not trained on; ``…_before`` and
        ``…_after`` are of the pruned model on the same rows, the latter as it is stored.
    :param zero_share_before: share of the decoder's linear weights that is exactly zero; it never falls.
    :param cpu_seconds: of this call, sampling and measuring among them; a call that went on after a kill knows nothing
        of the time before.
    """

    path: Path
    recipe: str
    text: str
    rows: int | None
    steps: int
    best_step: int
    tokens: int
    eval_tokens: int
    perplexity_parent: Estimate
    perplexity_before: Estimate
    perplexity_after: Estimate
    zero_share_before: float
    zero_share_after: float
    curve: tuple[CurvePoint, ...]
    seconds: float
    cpu_seconds: float
    config: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Perplexity after, divided by the dense parent's."""
        return self.perplexity_after.value / self.perplexity_parent.value

    def tables(self) -> list[Table]:
        """Return the perplexities and the run."""
        dense = self.perplexity_parent.value
        states = [
            (name, value.format(), f"{value.value / dense:.3f}")
            for name, value in (
                ("dense", self.perplexity_parent),
                ("pruned", self.perplexity_before),
                ("recovered", self.perplexity_after),
            )
        ]
        facts = [
            ("recipe", self.recipe),
            ("text", self.text if self.rows is None else f"{self.text}, {self.rows:,} rows"),
            ("steps", f"{self.steps:,} (best {self.best_step:,})"),
            ("tokens", f"{self.tokens:,}"),
            ("CPU seconds", f"{self.cpu_seconds:.1f}"),
        ]
        if self.zero_share_before:
            facts.append(("zeros", f"{self.zero_share_before:.2%} → {self.zero_share_after:.2%}"))
        title = f"Recovery: perplexity of {self.eval_tokens:,} tokens set aside"
        columns = ("", "perplexity", "× dense")
        return [Table(title, columns, states), Table("", ("recovery", ""), facts)]
