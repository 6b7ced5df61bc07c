"""How fast a run is: tokens and seconds a step, memory, and the share of the machine's measured peak."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from apt.checkpoint.architecture.families import ARCHITECTURES
from apt.checkpoint.architecture.flops import prefill_flops
from apt.console.errors import AptError
from apt.evaluation.memory import peak_rss_bytes

#: Seconds that the machine's peak is measured for.
CALIBRATION_SECONDS: Final = 0.3
#: Side of the square matrices that are multiplied; on a GPU, where small ones do not fill the machine.
_SIDE: Final = {"cpu": 1024, "cuda": 8192}
#: A backward pass takes a product for the input and one for the weight of each product of the forward pass.
_PASSES: Final = 3


@functools.cache
def measured_peak(dtype: torch.dtype, device: str) -> float:
    """Return the most floating-point operations a second that square matrix products of this process reach.

    :param device: type of the device, ``cpu`` or ``cuda``; with as many threads as torch has now.
    """
    side = _SIDE.get(device, 2048)
    matrix = torch.linspace(-1.0, 1.0, side, device=device).expand(side, side).to(dtype).contiguous()
    out = torch.empty_like(matrix)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best, begun = float("inf"), time.perf_counter()
    with torch.no_grad(), torch.autocast(device, enabled=False):
        while time.perf_counter() - begun < CALIBRATION_SECONDS:
            wait()
            before = time.perf_counter()
            torch.mm(matrix, matrix, out=out)
            wait()
            best = min(best, time.perf_counter() - before)
    return 2.0 * side**3 / best


class FlopCount:
    """Floating-point operations of training steps of one model, by its family's descriptor.

    Counted as :mod:`apt.checkpoint.architecture.flops` counts them, forward and backward: matrix products of every
    token with every weight, attention over the whole square of a window, the head for the tokens that count. A
    teacher's operations are not the model's and are not counted.
    """

    def __init__(self, model: Any) -> None:
        """Look the model's family up.

        :raises AptError: when the family has no descriptor, or the config lacks a size.
        """
        self._config: Mapping[str, Any] = model.config.to_dict()
        self._architecture = ARCHITECTURES[self._config["model_type"]]
        sizes = self._architecture.dimensions(self._config)
        self._head = 2 * sizes.vocab * sizes.hidden
        self._body = functools.cache(self._body_per_token)

    @classmethod
    def of(cls, model: Any) -> "FlopCount | None":
        """Return the count, or ``None`` where it would be a guess: unknown family, or not all of it is trained."""
        if model.config.model_type not in ARCHITECTURES or not all(p.requires_grad for p in model.parameters()):
            return None
        try:
            return cls(model)
        except AptError:
            return None

    def body(self, rows: int, window: int) -> float:
        """Operations of a batch, without the head."""
        return float(_PASSES * rows * window * self._body(window))

    def head(self, counted: float) -> float:
        """Operations of the head for counted tokens."""
        return float(_PASSES * counted * self._head)

    def _body_per_token(self, window: int) -> int:
        return prefill_flops(self._architecture, self._config, window).per_token - self._head


class Meter:
    """Counts tokens, steps and seconds between logs; what is not training (evaluating, saving) is not timed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, flops: FlopCount | None, processes: int) -> None:
        self._device = device
        self._flops = flops
        self._processes = processes
        #: Operations a second that this process can reach; ``None`` where the model's operations are not known.
        self.peak = None if flops is None else measured_peak(dtype, device.type)
        #: Tokens trained on over the whole run, as of the last reading.
        self.tokens = 0
        self._pending: Tensor | int = 0
        self._body_flops = 0.0
        self._seconds = 0.0
        self._since: float | None = None
        self._step = 0

    def begin(self, step: int) -> None:
        """Begin a run after a step."""
        self._step, self._seconds = step, 0.0
        self.resume()

    def pause(self) -> None:
        """Stop the clock."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        """Let the clock run."""
        if self._since is None:
            self._since = time.perf_counter()

    def add(self, tokens: Tensor, shapes: list[tuple[int, int]]) -> None:
        """Count a step.

        :param tokens: that are trained on, over all processes; read when figures are asked for only.
        :param shapes: ``(rows, window)`` of this process's micro-batches; the others' are taken to be the same.
        """
        self._pending = self._pending + tokens
        if self._flops is not None:
            self._body_flops += self._processes * sum(self._flops.body(*shape) for shape in shapes)

    def read_tokens(self) -> int:
        """Return the tokens of the whole run until now."""
        return self.tokens + int(self._pending)

    def figures(self, step: int) -> dict[str, float]:
        """Return the figures since the last reading, and begin anew."""
        self.pause()
        seconds = max(self._seconds, 1e-9)
        tokens = int(self._pending)
        self.tokens += tokens
        figures = {
            "train/tokens": float(self.tokens),
            "perf/tokens_per_s": tokens / seconds,
            "perf/step_s": seconds / max(1, step - self._step),
            "perf/peak_rss_mb": peak_rss_bytes() / 1e6,
        }
        if self._device.type == "cuda":
            figures["perf/peak_gpu_mb"] = torch.cuda.max_memory_allocated(self._device) / 1e6
        if self._flops is not None and self.peak is not None:
            done = self._body_flops + self._flops.head(tokens)
            figures["perf/mfu"] = done / seconds / (self.peak * self._processes)
        self._pending, self._body_flops, self._seconds, self._step = 0, 0.0, 0.0, step
        self.resume()
        return figures
