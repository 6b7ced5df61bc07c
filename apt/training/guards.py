"""Steps that would spoil the model: they are noticed before the optimizer acts on them."""

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apt.console.errors import AptError

if TYPE_CHECKING:
    from apt.training.config import Guards


class StepGuard:
    """Judges each step by its loss and the norm of its gradient.

    A skipped step leaves parameters and the optimizer's state as they are; the schedule and the data go on. All that
    is judged by is the same on every process, so that all of them agree.
    """

    def __init__(self, options: "Guards") -> None:
        self._options = options
        self._recent: deque[float] = deque(maxlen=options.spike_window)
        #: Steps that were skipped so far.
        self.skipped = 0

    def check(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Tell whether the optimizer may take the step (numbered from 1); call it before, on every process alike.

        :param loss: mean loss per token over all processes.
        :param gradient_norm: of the whole gradient, before it is cut.
        :raises AptError: when the run is to be stopped.
        """
        reason, action = self._fault(loss, gradient_norm)
        if not reason:
            self._recent.append(loss)
            return True
        if action == "stop":
            raise AptError(f"{reason} at step {step}", hint="lower the learning rate")
        self.skipped += 1
        if self.skipped > self._options.most_skipped:
            raise AptError(
                f"{reason} at step {step}, and {self._options.most_skipped} steps were skipped before",
                hint="lower the learning rate",
            )
        return False

    def _fault(self, loss: float, gradient_norm: float) -> tuple[str, str]:
        options = self._options
        if not math.isfinite(loss):
            return "the loss is not a finite number", options.on_non_finite
        if not math.isfinite(gradient_norm):
            return "the gradient's norm is not a finite number", options.on_non_finite
        factor, recent = options.spike_factor, self._recent
        if factor is not None and len(recent) == recent.maxlen and loss > factor * sum(recent) / len(recent):
            return f"the loss is {loss:.4g}, over {factor:g} times the mean of the last steps", options.on_spike
        return "", ""

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as JSON values."""
        return {"recent": list(self._recent), "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._recent.clear()
        self._recent.extend(state["recent"])
        self.skipped = int(state["skipped"])
