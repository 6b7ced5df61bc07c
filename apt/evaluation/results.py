"""What the operations of evaluation return."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apt.console.table import Table
from apt.console.units import format_bytes, format_count
from apt.evaluation.behaviour import Check, Sample
from apt.evaluation.paired import PairedTest, correct
from apt.evaluation.regression import Regression
from apt.evaluation.scoring import Divergence
from apt.evaluation.speed import Speed
from apt.evaluation.statistics import Estimate
from apt.evaluation.task_scoring import TaskScore

#: Whether a perplexity is on real text, or on text of the model itself, where it tells agreement with that model.
Kind = Literal["quality", "agreement"]

#: What the figure is called in a table.
KIND_LABELS = {"quality": "held-out perplexity", "agreement": "perplexity on the model's own text (agreement)"}


@dataclass(frozen=True, slots=True)
class TextResult:
    """A file of token rows.

    :param path: an ``.npz`` with the arrays ``calibration``, ``train`` and ``heldout``.
    :param kind: ``agreement`` when the rows were sampled from the model itself.
    """

    path: Path
    source: str
    kind: Kind
    window: int
    calibration_rows: int
    train_rows: int
    heldout_rows: int
    heldout_tokens: int
    heldout_bytes: int | None

    def tables(self) -> list[Table]:
        """Return the rows by split."""
        rows = [[s, str(getattr(self, f"{s}_rows"))] for s in ("calibration", "train", "heldout")]
        return [Table(f"{self.path}: {self.source}, {self.window} tokens a row", ("split", "rows"), rows)]


@dataclass(frozen=True, slots=True)
class TextScore:
    """How well a model predicts a text.

    :param kind: see :data:`Kind`.
    :param bits_per_byte: ``None`` where the rows do not come from a text.
    :param standard_error: of the negative log-likelihood per token, in nats.
    :param digest: of the rows, see :attr:`apt.evaluation.texts.Rows.digest`.
    :param row_nll, row_tokens: what the figures are sums of, so that a later result can be compared row by row.
    :param sources: the rows' documents, where those are the units of the intervals.
    """

    source: str
    kind: Kind
    tokens: int
    perplexity: Estimate
    bits_per_byte: Estimate | None
    standard_error: float
    digest: str
    row_nll: tuple[float, ...]
    row_tokens: tuple[int, ...]
    sources: tuple[int, ...] | None

    def rows(self) -> list[list[str]]:
        """Rows of figures for a table."""
        rows = [[KIND_LABELS[self.kind], self.perplexity.format()]]
        if self.bits_per_byte is not None:
            rows.append(["bits per byte", self.bits_per_byte.format(4)])
        return [*rows, ["tokens", format_count(self.tokens)]]


@dataclass(frozen=True, slots=True)
class TestResult:
    """What ``test`` tells.

    :param passed: whether every check was passed and nothing fell against the baseline.
    :param score: ``None`` when the model could not be run, or no text was asked for.
    """

    __test__ = False  # not a test class, whatever pytest makes of the name

    name: str
    path: Path
    passed: bool
    parameters: int
    size_bytes: int
    checks: tuple[Check, ...]
    score: TextScore | None
    tasks: tuple[TaskScore, ...]
    sample: Sample | None
    regression: Regression | None
    peak_rss_bytes: int
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that were not passed."""
        return tuple(c for c in self.checks if not c.passed)

    @property
    def fell(self) -> tuple[str, ...]:
        """Figures that are worse than the baseline's by more than noise."""
        return () if self.regression is None else tuple(c.figure for c in self.regression.changes if c.worse)

    def tables(self) -> list[Table]:
        """Return the checks, the figures and the sample."""
        title = f"{self.name}: {'passed' if self.passed else 'FAILED'}"
        checks = [[c.name, "ok" if c.passed else "FAILED", c.detail] for c in self.checks]
        tables = [Table(title, ("check", "result", "seen"), checks)]
        if self.score is not None:
            tables.append(Table(f"Text: {self.score.source}", ("figure", "value [95 %]"), self.score.rows()))
        if self.tasks:
            rows = [row for task in self.tasks for row in task.rows()]
            tables.append(Table("Tasks", ("task", "figure", "value [95 %]", "standard error"), rows))
        if self.regression is not None:
            tables.append(self.regression.table())
        if self.sample is not None and self.sample.text is not None:
            tables.append(Table("Greedy sample", ("text",), [[" ".join(self.sample.text.split())[:100]]]))
        return tables


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One model of a comparison; figures against the first are ``None`` for the first itself.

    :param perplexity: ``None`` where another tokenizer makes token figures incomparable.
    :param perplexity_ratio: perplexity over the first model's, by a paired bootstrap over rows.
    :param divergence: KL(first || this) in nats per token and top-1 agreement.
    :param runtime: what computed the figures, and in which dtype.
    :param notes: what was left out, and why.
    """

    name: str
    path: Path
    runtime: str
    parameters: int
    size_bytes: int
    size_ratio: float
    memory_bytes: int
    perplexity: Estimate | None
    bits_per_byte: Estimate | None
    perplexity_ratio: Estimate | None
    divergence: Divergence | None
    speed: Speed | None
    tasks: tuple[TaskScore, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FigureTest:
    """One figure of one model tested against the first's.

    :param unit: of the difference: ``nats per token`` (of a perplexity's logarithm), ``bits per byte``, ``share``.
    """

    model: str
    figure: str
    unit: str
    higher_is_better: bool
    test: PairedTest

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` than the first beyond chance, ``no difference found``, or ``not finite``."""
        if not math.isfinite(self.test.difference.value):
            return "not finite"
        if not self.test.significant:
            return "no difference found"
        return "better" if (self.test.difference.value > 0) == self.higher_is_better else "worse"

    @staticmethod
    def corrected(tests: "Sequence[FigureTest]") -> "list[FigureTest]":
        """Correct the tests of one comparison for their number (Holm)."""
        found = correct([t.test for t in tests])
        return [dataclasses.replace(t, test=c) for t, c in zip(tests, found, strict=True)]

    def _difference(self) -> str:
        d = self.test.difference
        if not math.isfinite(d.value):
            return "-"
        between = f"{d.low:+.4f}, {d.high:+.4f}" if math.isfinite(d.low) and math.isfinite(d.high) else "-"
        return f"{d.value:+.4f} [{between}] {self.unit}"

    def row(self) -> list[str]:
        """A row of a table."""
        t = self.test
        return [
            self.model,
            self.figure,
            self.verdict,
            self._difference(),
            f"{t.p:.3g}",
            f"{t.p_adjusted:.3g}",
            f"{t.minimal_detectable:.4f}" if t.minimal_detectable and math.isfinite(t.minimal_detectable) else "-",
        ]


@dataclass(frozen=True, slots=True)
class CompareResult:
    """What ``compare`` tells; ``models`` in the order they were given.

    :param tests: every figure that can be paired with the first model's, corrected together (Holm).
    """

    source: str
    kind: Kind
    tokens: int
    rows: int
    models: tuple[ComparedModel, ...]
    tests: tuple[FigureTest, ...] = ()

    def tables(self) -> list[Table]:
        """Return sizes and speed, the figures on the text and of the tasks, and what of it is beyond chance."""
        sizes = [
            [
                m.name,
                format_count(m.parameters),
                format_bytes(m.size_bytes),
                f"{m.size_ratio:.3f}",
                format_bytes(m.memory_bytes),
                m.speed.prefill.format() if m.speed else "-",
                m.speed.decode.format() if m.speed else "-",
            ]
            for m in self.models
        ]
        figures = [
            [
                m.name,
                m.perplexity.format() if m.perplexity else "-",
                m.bits_per_byte.format(4) if m.bits_per_byte else "-",
                m.perplexity_ratio.format() if m.perplexity_ratio else "-",
                m.divergence.kl.format(4) if m.divergence else "-",
                f"{100 * m.divergence.agreement.value:.2f} %" if m.divergence else "-",
            ]
            for m in self.models
        ]
        text = f"{KIND_LABELS[self.kind]}, {self.source}, {format_count(self.tokens)} tokens; [95 % interval]"
        size_columns = ("model", "parameters", "size", "× first", "memory", "prefill tok/s", "decode tok/s")
        tables = [
            Table("Size and speed", size_columns, sizes),
            Table(text, ("model", "perplexity", "bits/byte", "ppl ÷ first", "KL to first", "top-1 agreement"), figures),
        ]
        answers = [[m.name, *row] for m in self.models for task in m.tasks for row in task.rows()]
        if answers:
            tables.append(Table("Tasks", ("model", "task", "figure", "value [95 %]", "standard error"), answers))
        if self.tests:
            columns = ("model", "figure", "against the first", "difference [95 %]", "p", "p (Holm)", "detectable")
            title = "Beyond chance? Paired on the same items; detectable: with 80 % power at the corrected level"
            tables.append(Table(title, columns, [t.row() for t in self.tests]))
        told = [[m.name, m.runtime, "; ".join(m.notes)] for m in self.models]
        if any(m.notes or m.runtime != self.models[0].runtime for m in self.models):
            tables.append(Table("How it was computed", ("model", "runtime", "left out"), told))
        return tables
