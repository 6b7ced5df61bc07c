"""The operations of evaluation: their options, and the functions that commands and recipe steps call.

The measuring itself lies beside: :mod:`~apt.evaluation.text_files`, :mod:`~apt.evaluation.checking`,
:mod:`~apt.evaluation.comparing`.
"""

from typing import Final, Literal

from pydantic import Field

from apt.console.errors import CheckFailedError
from apt.evaluation.checking import MoreChecks, check_model
from apt.evaluation.comparing import compare_models
from apt.evaluation.results import CompareResult, TestResult, TextResult
from apt.evaluation.text_files import write_sampled, write_texts
from apt.options import FileRef, ModelRef, Options, OutputPath, Overwrite, TextRef
from apt.registry import Registry

__all__ = [
    "CompareOptions",
    "EmbeddedTextOptions",
    "SampleTextOptions",
    "TestOptions",
    "check",
    "compare",
    "embedded_text",
    "sample_text",
    "test",
]


_WINDOW: Final = "Tokens a row; the context, at most 512, when absent."
_MAX_ROWS: Final = "Score so many rows at most, spread over the text; all when absent."
_BATCH_ROWS: Final = "Rows scored side by side."


class SampleTextOptions(Options):
    """Sample rows of all splits from a model; no row is in two of them."""

    model: ModelRef
    output: OutputPath = Field(description="An .npz file; any other path is a directory that gets rows.npz.")
    calibration_rows: int = Field(default=64, ge=1, description="Rows to calibrate on.")
    train_rows: int = Field(default=256, ge=1, description="Rows to train on.")
    heldout_rows: int = Field(default=64, ge=1, description="Rows to measure on.")
    window: int | None = Field(
        default=None, ge=2, description="Tokens a row; the model's context, at most 256, when absent."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampling.")
    overwrite: Overwrite = False


class EmbeddedTextOptions(Options):
    """Write token rows of a text: the embedded one, or a file that is cut in disjoint splits."""

    model: ModelRef
    output: OutputPath = Field(description="An .npz file; any other path is a directory that gets rows.npz.")
    text: TextRef = Field(
        default="embedded",
        description="embedded, or a file: a .txt is cut into a train (80 %), a calibration (10 %) and a held-out "
        "(10 %) part, a .jsonl alike by its documents; an .npz has its splits.",
    )
    calibration_rows: int | None = Field(default=64, ge=1, description="Rows to calibrate on; all when absent.")
    train_rows: int | None = Field(default=512, ge=1, description="Rows to train on; all when absent.")
    heldout_rows: int | None = Field(default=None, ge=1, description="Rows to measure on; all when absent.")
    window: int | None = Field(
        default=None, ge=2, description="Tokens a row; the model's context, at most 512, when absent."
    )
    overwrite: Overwrite = False


class TestOptions(Options):
    """Check a checkpoint and measure its perplexity."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    model: ModelRef
    text: TextRef | None = Field(
        default="embedded",
        description="embedded, self (sampled from the model), or a .txt, .jsonl or .npz file; null scores nothing.",
    )
    window: int | None = Field(default=None, ge=2, description=_WINDOW)
    max_rows: int | None = Field(default=None, ge=1, description=_MAX_ROWS)
    new_tokens: int = Field(default=32, ge=1, description="Tokens to generate.")
    batch_rows: int = Field(default=8, ge=1, description=_BATCH_ROWS)
    tasks: tuple[FileRef, ...] = Field(
        default=(), description="JSONL files of items: multiple choice, cloze or exact match."
    )
    baseline: FileRef | None = Field(
        default=None, description="An earlier result as JSON: a figure that fell by more than noise fails the test."
    )


class CompareOptions(Options):
    """Compare checkpoints on the same text; the first is what the others are measured against."""

    models: list[ModelRef] = Field(min_length=2, description="The models, in the order in which they are shown.")
    labels: tuple[str, ...] = Field(
        default=(), description="Names to show, in the order of the models; their own when empty."
    )
    text: TextRef = Field(
        default="embedded", description="embedded, self (text of the first model), or a .txt, .jsonl or .npz file."
    )
    window: int | None = Field(default=None, ge=2, description=_WINDOW)
    max_rows: int | None = Field(default=None, ge=1, description=_MAX_ROWS)
    batch_rows: int = Field(default=8, ge=1, description=_BATCH_ROWS)
    speed: bool = Field(default=True, description="Measure prefill and decode speed.")
    dtype: Literal["float32", "stored"] = Field(
        default="float32", description="What the models compute in: stored keeps each one's own dtype."
    )
    tasks: tuple[FileRef, ...] = Field(default=(), description="JSONL files of items that every model answers.")


def sample_text(options: SampleTextOptions) -> TextResult:
    """Sample calibration, train and held-out rows from a model into one ``.npz``.

    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    return write_sampled(
        options.model,
        options.output,
        rows={
            "calibration": options.calibration_rows,
            "train": options.train_rows,
            "heldout": options.heldout_rows,
        },
        window=options.window,
        seed=options.seed,
        overwrite=options.overwrite,
    )


def embedded_text(options: EmbeddedTextOptions) -> TextResult:
    """Write token rows of a text, with the bytes they stand for, into one ``.npz``.

    :raises TargetExistsError: when the output exists and ``overwrite`` is false.
    """
    return write_texts(
        options.model,
        options.output,
        text=options.text,
        rows={
            "calibration": options.calibration_rows,
            "train": options.train_rows,
            "heldout": options.heldout_rows,
        },
        window=options.window,
        overwrite=options.overwrite,
    )


def check(options: TestOptions, more_checks: MoreChecks | None = None) -> TestResult:
    """Check a model; the result says whether it passed.

    :param more_checks: checks of others, see :func:`apt.evaluation.checking.check_model`.
    """
    return check_model(
        options.model,
        text=options.text,
        window=options.window,
        max_rows=options.max_rows,
        new_tokens=options.new_tokens,
        batch_rows=options.batch_rows,
        tasks=options.tasks,
        baseline=options.baseline,
        more_checks=more_checks,
    )


def test(options: TestOptions) -> TestResult:
    """Check a model and refuse one that does not pass: the step of a recipe.

    :raises CheckFailedError: naming the checks that failed.
    """
    result = check(options)
    if not result.passed:
        told = "; ".join([*(f"{c.name}: {c.detail}" for c in result.failed), *result.fell])
        raise CheckFailedError(f"{result.name}: {told}", hint=f"apt_model debug {result.path}")
    return result


def compare(options: CompareOptions, registry: Registry | None = None) -> CompareResult:
    """Compare models: size, speed, perplexity, divergence from the first, tasks, and what of it is beyond chance.

    :param registry: where a runtime for GGUF files is looked up; without one they are dequantized.

    :raises BadInputError: when the text gives no common figure for the models.
    """
    return compare_models(
        options.models,
        labels=options.labels,
        text=options.text,
        window=options.window,
        max_rows=options.max_rows,
        batch_rows=options.batch_rows,
        speed=options.speed,
        stored_dtype=options.dtype == "stored",
        tasks=options.tasks,
        registry=registry,
    )


test.__test__ = False  # type: ignore[attr-defined]  # nor is this a test function
