"""Steps that would spoil the model: they are noticed before the optimizer acts on them."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from apt.console.errors import AptError

if TYPE_CHECKING:
    from apt.training.config import Guards


class StepGuard:
    """Judges each step by its loss and its gradients.

    A skipped step leaves parameters and the optimizer's state as they are; the schedule and the data go on.
    """

    def __init__(self, options: "Guards") -> None:
        self._options = options
        self._recent: deque[float] = deque(maxlen=options.spike_window)
        self.skipped = 0

    def check(self, step: int, loss: float, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Tell whether the optimizer may take the step (numbered from 1); call it before, on every process alike.

        :param loss: mean loss per token over all processes.
        :raises AptError: when the run is to be stopped.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        reason, action = self._fault(loss, gradients)
        if not reason:
            self._recent.append(loss)
            return True
        self.skipped += 1
        if action == "stop" or self.skipped > self._options.most_skipped:
            raise AptError(f"{reason} at step {step}", hint="lower the learning rate")
        return False

    def _fault(self, loss: float, gradients: list[torch.Tensor]) -> tuple[str, str]:
        options = self._options
        if not math.isfinite(loss):
            return "the loss is not a finite number", options.on_non_finite
        if gradients and not bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            return "a gradient is not a finite number", options.on_non_finite
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
