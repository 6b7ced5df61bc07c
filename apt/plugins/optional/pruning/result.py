"""What ``prune`` tells: the artefact, its exact sizes, its measured loss, the plan."""

from dataclasses import dataclass
from pathlib import Path

from apt.console.table import Table
from apt.evaluation.statistics import Estimate
from apt.plugins.optional.pruning.strategies.base import LayerCut, PlanPreview, PlanTrial


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A pruned checkpoint.

    :param removed_share: share of the decoder's linear weights that is gone (or zero), 0 to 1, exactly.
    :param smaller: whether the model is smaller; a mask leaves size and speed as they were.
    :param layers: the cut map, one entry per dense layer.
    :param calibration_perplexity_before: dense, on the calibration rows; ``…_after`` is of the weights as stored, on
        the rows that they were fitted on, so it flatters the model a little.
    :param trials: plans that were measured, best first, on rows that they were not fitted on.
    """

    path: Path
    model: str
    strategy: str
    asked_ratio: float
    removed_share: float
    smaller: bool
    plan: str
    parameters_before: int
    parameters_after: int
    size_bytes_before: int
    size_bytes_after: int
    calibration_text: str
    calibration_tokens: int
    calibration_perplexity_before: Estimate
    calibration_perplexity_after: Estimate
    layers: tuple[LayerCut, ...]
    trials: tuple[PlanTrial, ...]
    seconds: float

    def tables(self) -> list[Table]:
        """Return the summary, the cut map and the plans that were weighed."""
        return [table for table in (self._summary(), self._cut_map(), self._trials()) if table.rows]

    def _summary(self) -> Table:
        effect = "" if self.smaller else " (zeros only: same size, same speed)"
        rows = [
            ("parameters", f"{self.parameters_before:,}", f"{self.parameters_after:,}"),
            ("bytes", f"{self.size_bytes_before:,}", f"{self.size_bytes_after:,}"),
            (
                "perplexity, calibration text",
                _estimate(self.calibration_perplexity_before),
                _estimate(self.calibration_perplexity_after),
            ),
        ]
        title = f"{self.path}: {self.removed_share:.2%} of the linear weights removed{effect}; {self.plan}"
        return Table(title, ("", "before", "after"), rows)

    def _cut_map(self) -> Table:
        rows = [
            (
                str(cut.layer),
                "dropped" if cut.place is None else str(cut.place),
                _change(cut.heads_before, cut.heads_after),
                _change(cut.kv_groups_before, cut.kv_groups_after),
                _change(cut.ff_before, cut.ff_after),
                "" if cut.stream_error is None else f"{cut.stream_error:.4f}",
            )
            for cut in self.layers
            if self.smaller
        ]
        return Table("Cut map", ("layer", "becomes", "heads", "KV groups", "ff", "stream error"), rows)

    def _trials(self) -> Table:
        rows = [
            (
                trial.plan,
                f"{trial.removed_share:.2%}",
                "" if trial.perplexity is None else f"{trial.perplexity:.3f}",
                "chosen" if trial.chosen else "",
            )
            for trial in self.trials
        ]
        return Table("Plans measured on held-back rows", ("plan", "removes", "perplexity", ""), rows)


@dataclass(frozen=True, slots=True)
class PrunePreview:
    """What ``prune --dry-run`` tells: plans that come into question, from headers; nothing is written."""

    model: str
    output: Path
    strategy: str
    asked_ratio: float
    parameters_before: int
    size_bytes_before: int
    plans: tuple[PlanPreview, ...]

    def tables(self) -> list[Table]:
        """Return the plans with their predicted sizes."""
        rows = [(p.plan, f"{p.removed_share:.2%}", f"{p.parameters:,}", f"{p.size_bytes:,}") for p in self.plans]
        title = f"Would write {self.output}, one of these plans (the measured loss decides)"
        if len(rows) == 1:
            title = f"Would write {self.output}"
        return [Table(title, ("plan", "removes", "parameters", "tensor bytes"), rows)]


def _estimate(value: Estimate) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} → {after}"
