"""How fast llama.cpp writes with a file: the figure that the export was made for."""

import statistics
import time
from collections.abc import Sequence
from typing import Final

from apt.evaluation.speed import Rate
from apt.plugins.builtin.ollama.llama_cpp import LlamaCpp

_REPEATS: Final = 5
_SHORT: Final = 8
#: A long continuation is about so long, within the bounds below: enough to be told from noise, not more.
_SECONDS: Final = 0.3
_LEAST: Final = 16
_MOST: Final = 256


def measure_decode(runner: LlamaCpp, start: int, context: int) -> Rate | None:
    """Return tokens written per second, one sequence at a time, with the thread count of ``runner``.

    A short and a long continuation are timed and subtracted, so that making the context and reading the prompt do
    not count.

    :param start: the token to begin with.
    :param context: the model's context length, which bounds the continuation.
    :returns: ``None`` where the context is too short, or the machine too busy, to tell the two apart.
    """
    first = seconds_of(runner, [start], min(_SHORT, context - 1))  # also warms up
    more = min(max(_LEAST, int(_SECONDS * _SHORT / first)), _MOST, context - 1 - _SHORT)
    if more < _LEAST:
        return None
    short = min(seconds_of(runner, [start], _SHORT) for _ in range(_REPEATS))
    rates = []
    for _ in range(_REPEATS):
        seconds = seconds_of(runner, [start], _SHORT + more) - short
        if seconds > 0:
            rates.append(more / seconds)
    return Rate(statistics.median(rates), min(rates), max(rates)) if rates else None


def seconds_of(runner: LlamaCpp, prompt: Sequence[int], new_tokens: int) -> float:
    """Return the wall time of one continuation, its context's making included."""
    begun = time.perf_counter()
    runner.greedy([prompt], new_tokens)
    return time.perf_counter() - begun
