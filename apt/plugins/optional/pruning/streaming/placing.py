"""Whether a cut is made in memory or layer by layer, where the call leaves it open."""

import dataclasses
from typing import Final

from apt.checkpoint.reader import Checkpoint
from apt.console import output
from apt.console.errors import UnsupportedError, UsageError
from apt.console.units import format_bytes
from apt.evaluation.memory import available_bytes
from apt.plugins.optional.pruning.run import Run

#: The dense model and the cut one are both in memory: a float32 model above this share of the free one is streamed.
_MEMORY_SHARE: Final = 0.5

#: Bytes of a weight in memory.
_VALUE_BYTES: Final = 4


def should_stream(checkpoint: Checkpoint) -> bool:
    """Whether the float32 model would take more than half of the memory that is free."""
    return _VALUE_BYTES * checkpoint.parameters > _MEMORY_SHARE * available_bytes()


def placed(run: Run) -> Run:
    """Return the run, with ``stream`` set where the model is too large for the memory, which is told.

    :raises UnsupportedError: when the dense weights alone have no room, and the cut cannot be made layer by layer.
    """
    checkpoint, options = run.checkpoint, run.options
    if options.stream or not should_stream(checkpoint):
        return run
    need, free = _VALUE_BYTES * checkpoint.parameters, available_bytes()
    sizes = f"{checkpoint.name} takes {format_bytes(need)} in float32, {format_bytes(free)} of memory are free"
    why = _hindrance(run)
    if not why:
        output.note(f"{sizes}: layer by layer from the files, as with --stream")
        return dataclasses.replace(run, options=options.model_copy(update={"stream": True}))
    if need > free:
        raise UnsupportedError(
            f"{sizes}, and {why}",
            hint="--stream with an effort and a text that it takes, another strategy, or a machine with more memory",
        )
    output.warn(f"{sizes}: dense and cut model together may not fit, and {why}")
    return run


def _hindrance(run: Run) -> str:
    """Say why a cut cannot be made layer by layer; empty when it can."""
    from apt.plugins.optional.pruning.streaming.cutting import check_text, plan_of

    try:
        check_text(run)
        plan_of(run)
    except (UnsupportedError, UsageError) as error:
        return str(error)
    return ""
