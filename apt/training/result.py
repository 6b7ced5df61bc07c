"""What a training run leaves behind, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One evaluation of a run.

    :param step: optimizer steps done; 0 is the model as it came.
    :param tokens: tokens trained on until then.
    :param train_loss: the training loss per token since the point before; ``None`` at step 0.
    :param eval_loss: cross-entropy of the evaluation rows, nats per token.
    """

    step: int
    tokens: int
    train_loss: float | None
    eval_loss: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The outcome of a run.

    :param best_step: the step whose weights the model now holds; 0 when no training step improved on the start.
    :param metrics: the last interval's figures by their fixed names (``train/loss``, ``kd/kl_token``, …).
    :param record: what the run was made with (:func:`apt.training.record.run_record`), as taken when it began.
    :param skipped_steps: steps that a guard kept the optimizer from.
    """

    curve: tuple[CurvePoint, ...]
    best_step: int
    best_eval_loss: float
    steps: int
    tokens: int
    seconds: float
    metrics: dict[str, float]
    record: Mapping[str, Any]
    skipped_steps: int = 0


def curve_of(history: Sequence[Mapping[str, Any]]) -> tuple[CurvePoint, ...]:
    """Read the curve from Trainer's log history."""
    points = []
    train_loss: float | None = None
    for entry in history:
        train_loss = entry.get("train/loss", train_loss)
        if "eval/rows/loss" in entry:
            step = int(entry["step"])
            points.append(
                CurvePoint(
                    step=step,
                    tokens=int(entry["train/tokens"]),
                    train_loss=train_loss if step else None,
                    eval_loss=float(entry["eval/rows/loss"]),
                )
            )
    return tuple(points)
