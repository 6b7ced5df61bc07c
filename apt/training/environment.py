"""What a process is started with: nothing but its config steers a run, and most operations are done by one process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from apt.console import output
from apt.console.errors import UsageError

#: Variables by which accelerate would change precision, accumulation, compilation or sharding behind a config's back.
#: Which processes there are (RANK, WORLD_SIZE, MASTER_ADDR, …) and what hardware is used is not among them.
_PREFIXES: Final = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")


def check_alone(operation: str) -> None:
    """Refuse an operation that several processes would each do, and write to the same place.

    :raises UsageError: when ``torchrun`` started more than one process.
    """
    together = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and together != "1":
        raise UsageError(
            f"torchrun started {together} processes, and {operation} is done by one",
            hint="only apt_model train goes with torchrun; its configs know distillation too",
        )


@contextmanager
def unsteered() -> Iterator[None]:
    """Put accelerate's variables away, also those that Trainer sets meanwhile; they are as before afterwards."""
    found = _taken()
    if found:
        output.note(f"not heeded, the config alone says how a run goes: {', '.join(sorted(found))}")
    try:
        yield
    finally:
        _taken()
        os.environ.update(found)


def _taken() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    for name in found:
        del os.environ[name]
    return found
