"""What the report reads of the operations' results: the contract between them and this room.

Results come as plain values (a recipe hands them on as JSON), from plugins that this room must not import. Fields that
the report does not read are ignored; one that it reads and that is missing is told by name.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """A part of a result; unknown fields are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def finite(value: Any) -> Any:
    """Return a result without figures that are NaN or infinite (null in JSON); one without interval stands alone."""
    if isinstance(value, list):
        return [finite(v) for v in value if not (isinstance(v, dict) and "estimate" in v and not finite(v["estimate"]))]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"value", "low", "high"}:
        low, high = (value["value"] if value[end] is None else value[end] for end in ("low", "high"))
        return None if value["value"] is None else {"value": value["value"], "low": low, "high": high}
    found = {k: finite(v) for k, v in value.items()}
    distance = found.get("divergence")
    if isinstance(distance, dict) and distance.get("kl") is None:
        found["divergence"] = None
    return found


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second: the median, the slowest and the fastest run."""

    tokens_per_second: float
    low: float
    high: float


class Speed(View):
    """Rates of one sequence at a time."""

    prefill: Rate
    decode: Rate
    threads: int = 1


class Divergence(View):
    """Distance from the reference model."""

    kl: Estimate
    agreement: Estimate


class TaskFigure(View):
    """One figure of a task."""

    name: str
    estimate: Estimate
    higher_is_better: bool


class TaskFigures(View):
    """A model on a task."""

    name: str
    items: int
    metrics: tuple[TaskFigure, ...]


class ComparedModel(View):
    """A state of the model, measured."""

    name: str
    parameters: int
    size_bytes: int
    perplexity: Estimate | None
    perplexity_ratio: Estimate | None = None
    bits_per_byte: Estimate | None = None
    divergence: Divergence | None = None
    speed: Speed | None = None
    runtime: str = ""
    tasks: tuple[TaskFigures, ...] = ()


class Comparison(View):
    """The result of ``compare``; the first model is the parent."""

    source: str
    kind: str
    tokens: int
    models: tuple[ComparedModel, ...] = Field(min_length=2)


class Text(View):
    """The rows that everything was measured on."""

    source: str


class LayerCut(View):
    """What became of one layer."""

    layer: int
    place: int | None
    heads_before: int
    heads_after: int
    kv_groups_before: int
    kv_groups_after: int
    ff_before: int
    ff_after: int


class Pruning(View):
    """The result of ``prune``."""

    asked_ratio: float | None = None
    goal: str = ""
    removed_share: float
    smaller: bool
    plan: str = ""
    layers: tuple[LayerCut, ...] = ()


class CurvePoint(View):
    """One evaluation of a training run."""

    step: int
    train_loss: float | None
    eval_loss: float


class Figures(View):
    """A model on the held-out rows of its training."""

    perplexity: Estimate
    kl: Estimate | None = None
    agreement: Estimate | None = None


class Control(View):
    """The same student on cross-entropy alone."""

    figures: Figures
    curve: tuple[CurvePoint, ...]


class Distillation(View):
    """The result of ``distill``."""

    steps: int
    best_step: int
    heldout_tokens: int
    curve: tuple[CurvePoint, ...]
    control: Control | None = None


class Export(View):
    """The result of ``export-gguf``; ``tensors`` counts what it wrote, by type."""

    type: str
    tensors: dict[str, int]
    size_bytes: int
    parameters: int


class Greedy(View):
    """Greedy text in llama.cpp against the checkpoint's."""

    prompts: int
    compared: int
    ended_early: int


class Predictions(View):
    """Predictions in llama.cpp against the checkpoint's."""

    tokens: int
    kl: Estimate
    agreement: Estimate
    perplexity_gguf: Estimate
    perplexity_change: float


class Tensors(View):
    """Stored values against the checkpoint's."""

    tensors: int
    exact: int
    bounded: int


class Verification(View):
    """The result of ``verify-gguf``."""

    type: str
    tensors: Tensors
    llama_cpp: str
    greedy: Greedy | None = None
    predictions: Predictions | None = None
    decode: Rate | None = None


class Backup(View):
    """The result of ``backup``."""

    name: str
    version: int
    size_bytes: int
    new_bytes: int
    tensors_total: int
    tensors_stored: int


class Difference(View):
    """The result of ``difference``."""

    identical: bool
    tensors: int
    changed_tensors: int
    changed_bytes: int


class StoredVersion(View):
    """A backup and what of it was new."""

    backup: Backup
    difference: Difference | None = None
