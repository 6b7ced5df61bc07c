"""Which trackers a config asks for, as far as this machine has them."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apt.console import output
from apt.console.errors import MissingDependencyError, UsageError
from apt.training.config import TrackingConfig, WandbMode
from apt.training.tracking.contract import Tracker, Tracking
from apt.training.tracking.weights_and_biases import has_key


def check_tracking(tracking: TrackingConfig | None) -> None:
    """Refuse a tracker that is asked for by name and cannot be had; nothing is started.

    :raises MissingDependencyError: when its package is not installed.
    :raises UsageError: for ``wandb_mode: online`` without a key.
    """
    if tracking is None:
        return
    if tracking.tensorboard and not _installed("tensorboard"):
        raise MissingDependencyError(
            "tracking.tensorboard: the package 'tensorboard' is not installed", hint="pip install tensorboard"
        )
    if tracking.wandb_mode in ("online", "offline") and not _installed("wandb"):
        raise MissingDependencyError(
            f"tracking.wandb_mode: {tracking.wandb_mode}: the package 'wandb' is not installed",
            hint="pip install wandb",
        )
    if tracking.wandb_mode == "online" and not has_key():
        raise UsageError(
            "tracking.wandb_mode: online needs a W&B key", hint="set WANDB_API_KEY, or use wandb_mode: offline"
        )


def wandb_mode_of(tracking: TrackingConfig) -> WandbMode:
    """Return how W&B is used; where the config does not say, in the best way that there is, told in one line."""
    if tracking.wandb_mode is not None:
        return tracking.wandb_mode
    if not _installed("wandb"):
        output.note("the package wandb is not installed: nothing goes to W&B")
        return "disabled"
    if has_key():
        return "online"
    output.note("no W&B key is present: W&B files are written to the run directory (wandb_mode: offline)")
    return "offline"


@contextmanager
def tracked(
    tracking: TrackingConfig | None,
    run_dir: Path,
    record: Mapping[str, Any],
    *,
    name: str,
    history: Sequence[Mapping[str, Any]] = (),
    done_steps: int = 0,
) -> Iterator[Tracking]:
    """Yield the callback that hands a run's figures to the trackers of its config; they are finished at the end.

    :param record: of the run; what the trackers keep as its config.
    :param name: of the run, where the config gives none.
    :param history: the log of the state that the run goes on from, after ``done_steps`` steps.
    :raises AptError: as :func:`check_tracking`.
    """
    check_tracking(tracking)
    callback = Tracking()
    failed = True
    try:
        if tracking is not None:
            _add(callback, tracking, run_dir, record, tracking.run_name or name, history, done_steps)
        yield callback
        failed = False
    finally:
        callback.close(failed=failed)


def _add(
    callback: Tracking,
    tracking: TrackingConfig,
    run_dir: Path,
    record: Mapping[str, Any],
    name: str,
    history: Sequence[Mapping[str, Any]],
    done_steps: int,
) -> None:
    def tensorboard() -> Tracker:
        from apt.training.tracking.tensorboard import TensorBoard

        return TensorBoard(run_dir, record, done_steps)

    def wandb() -> Tracker:
        from apt.training.tracking.weights_and_biases import WeightsAndBiases

        return WeightsAndBiases(run_dir, record, mode=mode, project=tracking.wandb_project, name=name, history=history)

    if tracking.tensorboard:
        callback.add("TensorBoard", tensorboard)
    mode = wandb_mode_of(tracking)
    if mode != "disabled":
        callback.add("W&B", wandb)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
