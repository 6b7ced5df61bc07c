"""A training run as charts, from what runs leave behind: Trainer's state, curves in JSON, records of a recipe."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.reader import LINEAGE_NAME, read_json
from apt.console.errors import BadInputError
from apt.report.charts import Chart, Point, Series
from apt.report.language import Translate
from apt.report.page import Tile

#: Points of a curve that are drawn; longer ones are thinned evenly, the last point stays.
MOST_POINTS: Final = 240

#: Names that programs give to the same figure → figure and the series it belongs to.
_NAMES: Final = {
    "train/loss": ("loss", "training"), "loss": ("loss", "training"), "train_loss": ("loss", "training"),
    "eval/rows/loss": ("loss", "held out"), "eval_loss": ("loss", "held out"), "heldout_loss": ("loss", "held out"),
    "heldout_bits_per_byte": ("bits_per_byte", "held out"), "eval_bits_per_byte": ("bits_per_byte", "held out"),
    "learning_rate": ("lr", "learning rate"), "train/lr": ("lr", "learning rate"),
    "grad_norm": ("grad", "gradient norm"), "train/grad_norm": ("grad", "gradient norm"),
}  # fmt: skip
_FIGURES: Final = {
    "loss": ("Training loss", "nats per token; lower is better"),
    "bits_per_byte": ("Held-out bits per byte", "bits per byte; lower is better"),
    "lr": ("Learning rate", "learning rate"),
    "grad": ("Gradient norm", "gradient norm"),
}

History = Sequence[Mapping[str, Any]]


def find_histories(directory: Path) -> dict[str, History]:
    """Return the histories in a run's directory by where they come from; empty when it holds none.

    Reads ``trainer_state.json`` (of the newest ``checkpoint-…`` when the run is not finished), ``*.jsonl`` of lines
    with a ``step``, the curve in ``apt.json``, and the results that a recipe's engine keeps.

    :raises BadInputError: when one of these is damaged.
    """
    found: dict[str, History] = {}
    states = sorted(directory.glob("checkpoint-*/trainer_state.json"), key=_step_of)
    for path in [directory / "trainer_state.json"] if (directory / "trainer_state.json").is_file() else states[-1:]:
        found[str(path.relative_to(directory))] = history_of(read_json(path), path)
    for path in sorted(directory.glob("*.jsonl")):
        lines = _steps(path)
        if lines:
            found[path.name] = lines
    if (directory / LINEAGE_NAME).is_file():
        metrics = read_json(directory / LINEAGE_NAME).get("metrics")
        if isinstance(metrics, dict) and isinstance(metrics.get("curve"), list):
            found[LINEAGE_NAME] = history_of(metrics, directory / LINEAGE_NAME)
    for path in sorted(directory.glob(".apt/steps/*.json")):
        result = read_json(path).get("result")
        if isinstance(result, dict) and isinstance(result.get("curve"), list):
            found[path.stem] = history_of(result, path)
    return {name: history for name, history in found.items() if history}


def history_of(value: Mapping[str, Any], path: Path) -> History:
    """Return the entries of a Trainer state (``log_history``) or of a result (``curve``).

    :raises BadInputError: when they are no list of objects.
    """
    entries = value.get("log_history", value.get("curve"))
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise BadInputError(f"{path}: log_history or curve is not a list of objects")
    return entries


def run_charts(histories: Mapping[str, History], words: Translate) -> list[Chart]:
    """Return a chart for each figure that the histories hold; several histories are told apart by name."""
    return [c for figure in _FIGURES if (c := _chart(figure, histories, words)) is not None]


def run_tiles(histories: Mapping[str, History], words: Translate) -> list[Tile]:
    """Return the headline figures of the first history that has a loss: steps, last and best loss."""
    for history in histories.values():
        kind = "held out" if _points("loss", "held out", history) else "training"
        losses = _points("loss", kind, history)
        if losses:
            best = min(losses, key=lambda p: p.y)
            return [
                Tile(words("steps"), f"{_last_step(history):,}", ""),
                Tile(f"{words('last')}: {words('loss')}", f"{losses[-1].y:.4g}", words(kind)),
                Tile(f"{words('best')}: {words('loss')}", f"{best.y:.4g}", f"{words('step')} {best.x:,.0f}"),
            ]
    return []


def summary_rows(histories: Mapping[str, History], words: Translate) -> list[list[str]]:
    """Return, for each history, where it comes from, its steps, and of each figure the first and the last value."""
    rows = []
    for name, history in histories.items():
        told = [f"{words('steps')} {_last_step(history):,}"]
        for figure, part in dict.fromkeys(_NAMES.values()):
            points = _points(figure, part, history)
            if points:
                told.append(f"{words(_FIGURES[figure][0])} ({words(part)}) {points[0].y:.4g} → {points[-1].y:.4g}")
        rows.append([name, "; ".join(told)])
    return rows


def _last_step(history: History) -> int:
    return max((int(e["step"]) for e in history if _number(e.get("step"))), default=0)


def _chart(figure: str, histories: Mapping[str, History], words: Translate) -> Chart | None:
    title, y_label = _FIGURES[figure]
    series = []
    for source, history in histories.items():
        for part in dict.fromkeys(part for kind, part in _NAMES.values() if kind == figure):
            points = _thinned(_points(figure, part, history))
            if points:
                name = words(part) if len(histories) == 1 else f"{source}: {words(part)}"
                series.append(Series(name, tuple(points)))
    if not series:
        return None
    about = (
        "The loss of a training run over its steps."
        if figure == "loss"
        else "A figure of a training run over its steps."
    )
    return Chart(
        id=f"run-{figure}", kind="lines", title=words(title), description=words(about), x_label=words("training step"),
        y_label=words(y_label), series=tuple(series), whole_x=True,
    )  # fmt: skip


def _points(figure: str, part: str, history: History) -> list[Point]:
    keys = [k for k, meaning in _NAMES.items() if meaning == (figure, part)]
    by_step: dict[float, float] = {}
    for entry in history:
        value = next((entry[k] for k in keys if _number(entry.get(k))), None)
        if value is not None and _number(entry.get("step")):
            by_step[float(entry["step"])] = float(value)
    return [Point(x, y) for x, y in sorted(by_step.items())]


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= MOST_POINTS:
        return points
    step = -(-len(points) // MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _number(value: Any) -> bool:
    """Whether a value can be drawn: a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file that have a step and a figure known here; none where the file is something else."""
    return [e for e in _objects(path) if _number(e.get("step")) and any(k in e for k in _NAMES)]


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _step_of(path: Path) -> int:
    number = path.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
