"""What ``prune`` tells: the artefact, its exact sizes, its measured loss and speed, the plan."""

from dataclasses import dataclass
from pathlib import Path

from apt.console.table import Table
from apt.console.units import format_bytes
from apt.evaluation.speed import SpeedComparison
from apt.plugins.optional.pruning.contract import LayerCost, LayerCut, PlanPreview, PlanTrial
from apt.plugins.optional.pruning.measure import TextFigures
from apt.plugins.optional.pruning.recovery.result import RecoveryResult


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A pruned checkpoint.

    :param goal: what was asked; ``asked_ratio`` is the share of linear weights of it, where it is one.
    :param removed_share: share of the decoder's linear weights that is gone (or zero), 0 to 1, exactly.
    :param smaller: whether the model is smaller; a mask leaves size and speed as they were.
    :param nonzero_before: stored values that are not zero; ``nonzero_after`` counts them in the written files.
    :param size_bytes_before: bytes of the weight files; ``size_bytes_after`` of those written.
    :param calibration: the text that the weights were fitted on, which flatters the model.
    :param heldout: a text that was not fitted on.
    :param gap_nats: rise of the loss per token on the held-out text, less that on the calibration text: what of the
        fit does not carry over.
    :param heldout_cut: the held-out text after the cut and before a recovery; ``recovery`` tells of that. Sizes,
        perplexities and speed are then of what was recovered; how the cut was chosen and made stays as it was.
    :param speed: the dense model's and the cut one's, measured in turn in their stored dtype; ``None`` where it was
        not, and ``speed_skipped`` says why.
    :param max_logit_difference: of the written checkpoint, loaded again, from the model in memory; ``None`` where it
        was not loaded, and ``reload_skipped`` says why.
    :param layers: the cut map, one entry per dense layer.
    :param trials: plans that were measured, best first, on rows that they were not fitted on.
    :param sensitivity: what cutting one layer alone costs, as far as the search measured it.
    :param fitted_perplexity: on the calibration rows that the chosen plan was fitted on, when it was chosen;
        ``held_back_perplexity`` on those held back to choose by. ``None`` where nothing was held back.
    :param peak_rss_bytes: of the process, whatever it did before.
    """

    path: Path
    model: str
    strategy: str
    goal: str
    asked_ratio: float | None
    removed_share: float
    smaller: bool
    plan: str
    parameters_before: int
    parameters_after: int
    nonzero_before: int
    nonzero_after: int
    size_bytes_before: int
    size_bytes_after: int
    calibration: TextFigures
    heldout: TextFigures
    gap_nats: float
    layers: tuple[LayerCut, ...]
    trials: tuple[PlanTrial, ...]
    peak_rss_bytes: int
    cpu_seconds: float
    seconds: float
    speed: SpeedComparison | None = None
    speed_skipped: str = ""
    max_logit_difference: float | None = None
    reload_skipped: str = ""
    fitted_perplexity: float | None = None
    held_back_perplexity: float | None = None
    heldout_cut: TextFigures | None = None
    recovery: RecoveryResult | None = None
    sensitivity: tuple[LayerCost, ...] = ()

    @property
    def effect(self) -> str:
        """Whether bytes and time are saved, in words."""
        if self.smaller:
            return ""
        measured = "" if self.speed is None else f", measured {self.speed.decode_ratio.format(2)} × the decode speed"
        return f"zeros only: same size, same speed{measured}"

    def tables(self) -> list[Table]:
        """Return the figures before and after, how they were found, the cut map and the plans that were weighed."""
        recovery = self.recovery.tables() if self.recovery is not None else []
        found = (self._figures(), self._evidence(), *recovery, self._cut_map(), self._trials(), self._costs())
        return [table for table in found if table.rows]

    def _figures(self) -> Table:
        rows = [
            _counts("parameters", self.parameters_before, self.parameters_after),
            _counts("not zero", self.nonzero_before, self.nonzero_after),
            _counts("bytes of weights", self.size_bytes_before, self.size_bytes_after),
        ]
        for name, text in (("held-out perplexity", self.heldout), ("calibration perplexity", self.calibration)):
            rows.append([name, text.perplexity_before.format(), text.perplexity_after.format(), text.ratio.format()])
        if self.speed is not None:
            first, second = self.speed.first, self.speed.second
            for name, before, after, ratio in (
                ("prefill tokens/s", first.prefill, second.prefill, self.speed.prefill_ratio),
                ("decode tokens/s", first.decode, second.decode, self.speed.decode_ratio),
            ):
                rows.append([name, before.format(), after.format(), ratio.format(2)])
        effect = f" ({self.effect})" if self.effect else ""
        title = f"{self.path}: {self.removed_share:.2%} of the linear weights removed{effect}; {self.plan}"
        return Table(title, ("", "before", "after", "after ÷ before [95 %]"), rows)

    def _evidence(self) -> Table:
        text, test = self.heldout, self.heldout.test
        how = "text sampled from a model: agreement with it" if text.kind == "agreement" else "text"
        rows = [
            ["asked", self.goal],
            ["held out", f"{text.source}, {text.tokens:,} tokens of {how}"],
            ["loss rises by", f"{test.difference.format(4)} nats per token, p {test.p:.2g}"],
            ["fitted on", f"{self.calibration.source}, {self.calibration.tokens:,} tokens"],
            ["gap", f"{self.gap_nats:+.4f} nats per token more on held-out text than on what was fitted"],
        ]
        if self.fitted_perplexity is not None and self.held_back_perplexity is not None:
            rows.append(
                ["chosen by", f"perplexity {self.held_back_perplexity:.3f} on calibration rows held back, "
                 f"{self.fitted_perplexity:.3f} on those fitted"]
            )  # fmt: skip
        if self.speed is not None:
            s = self.speed.second
            rows.append(
                ["speed", f"{s.repeats} rounds in turn, batch 1, {s.prompt_tokens} + {s.new_tokens} tokens, {s.dtype}, "
                 f"{s.threads} threads, {s.device}"]
            )  # fmt: skip
        elif self.speed_skipped:
            rows.append(["speed", f"not measured: {self.speed_skipped}"])
        if self.max_logit_difference is not None:
            rows.append(["read again", f"logits {self.max_logit_difference:.3g} apart at most"])
        elif self.reload_skipped:
            rows.append(["read again", f"not loaded: {self.reload_skipped}"])
        rows.append(
            ["took", f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} CPU-s, {format_bytes(self.peak_rss_bytes)}"]
        )
        return Table("How it was found", ("", ""), rows)

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

    def _costs(self) -> Table:
        """What single cuts of each layer cost: of attention and MLP the measured level that is nearest to a half."""
        rows = []
        for layer in sorted({cost.layer for cost in self.sensitivity}):
            row = [str(layer)]
            for axis, share in (("drop", 0.0), ("attention", 0.5), ("mlp", 0.5)):
                costs = [cost for cost in self.sensitivity if (cost.layer, cost.axis) == (layer, axis)]
                nearest = min(costs, key=lambda cost: abs(cost.kept_share - share), default=None)
                row.append("" if nearest is None else f"{nearest.loss_rise:+.4f}")
            rows.append(row)
        title = "What cutting one layer alone costs, in nats per token on held-back rows"
        return Table(title, ("layer", "dropped", "half of attention", "half of MLP"), rows)


@dataclass(frozen=True, slots=True)
class PrunePreview:
    """What ``prune --dry-run`` tells: plans that come into question, from headers; nothing is written.

    :param read_bytes: of weight files that would be read.
    :param memory_bytes: weights and activations at the least; libraries and buffers come on top.
    :param disk_bytes: of the largest of the plans.
    :param streamed: whether the cut would be made layer by layer from the files.
    """

    model: str
    output: Path
    strategy: str
    goal: str
    asked_ratio: float | None
    calibration: str
    heldout: str
    parameters_before: int
    size_bytes_before: int
    plans: tuple[PlanPreview, ...]
    read_bytes: int
    memory_bytes: int
    disk_bytes: int
    streamed: bool = False

    def tables(self) -> list[Table]:
        """Return the plans with their predicted sizes, and what the run would need."""
        rows = [
            (p.plan, f"{p.removed_share:.2%}", f"{p.parameters:,}", f"{p.size_bytes:,}")
            for p in self.plans
        ]  # fmt: skip
        title = f"Would write {self.output}, one of these plans (the measured loss decides)"
        if len(rows) == 1:
            title = f"Would write {self.output}"
        by_layers = ", one layer at a time" if self.streamed else ""
        needs = [
            ("asked", self.goal),
            (
                "reads",
                f"{format_bytes(self.read_bytes)} of weights; {self.calibration} to fit, {self.heldout} to measure",
            ),
            ("memory", f"{format_bytes(self.memory_bytes)} of weights and activations{by_layers}"),
            ("disk", format_bytes(self.disk_bytes)),
        ]
        return [
            Table(title, ("plan", "removes", "parameters", "tensor bytes"), rows),
            Table("Needs", ("", ""), needs),
        ]


def _counts(name: str, before: int, after: int) -> list[str]:
    return [name, f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else "-"]


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} → {after}"
