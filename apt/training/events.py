"""Who is told of a training run: the plugin host connects its hooks here."""

from collections.abc import Mapping
from typing import Any, Protocol


class Listener(Protocol):
    """Told of a run's start, of every optimizer step and of its end."""

    def on_training_start(self, steps: int, options: Mapping[str, Any]) -> None:
        """A run of ``steps`` optimizer steps begins; ``options`` is its resolved config."""

    def on_training_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step was made, counted from 1."""

    def on_training_end(self, steps: int, metrics: Mapping[str, float]) -> None:
        """The run has ended, with its last metrics."""


listeners: list[Listener] = []
