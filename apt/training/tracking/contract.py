"""What a tracker is, and how a run stays unharmed by one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apt.console import output
from apt.console.errors import one_line


class Tracker(Protocol):
    """Takes a run's figures; ready once it is made."""

    #: As the user knows it.
    title: str

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures by their fixed names; several calls may be of one step."""
        ...

    def close(self, *, failed: bool) -> None:
        """Finish: nothing of the tracker is left in this process."""
        ...


class Tracking(TrainerCallback):
    """Hands figures to trackers. One that fails is told of once and left out; the run goes on."""

    def __init__(self) -> None:
        self._trackers: list[Tracker] = []

    def add(self, title: str, make: Callable[[], Tracker]) -> None:
        """Make a tracker and take it in."""
        found: list[Tracker] = []
        if self._survives(title, lambda: found.append(make())):
            self._trackers += found

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Hand on what has one of the fixed names, all of which have a room before a slash."""
        figures = {name: float(value) for name, value in rest["logs"].items() if "/" in name}
        for tracker in tuple(self._trackers):
            if figures and not self._survives(tracker.title, partial(tracker.log, state.global_step, figures)):
                self._trackers.remove(tracker)
                self._survives("", partial(tracker.close, failed=True))

    def close(self, *, failed: bool) -> None:
        """Finish all trackers."""
        for tracker in self._trackers:
            self._survives(tracker.title, partial(tracker.close, failed=failed))
        self._trackers.clear()

    @staticmethod
    def _survives(title: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # whatever a tracker's library or server does wrong
            if title:
                output.warn(f"{title} does not work, and the run goes on without it: {one_line(error)[:200]}")
            return False
        return True
