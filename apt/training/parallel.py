"""Training over several processes."""

import atexit
import gc
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def processes() -> Any:
    """Return accelerate's view of the processes that train together, in a group of them if ``torchrun`` made one.

    Whoever asks first decides on the backend: without being told of the CPU, accelerate makes no group there.
    """
    from accelerate import PartialState

    _leave_at_exit()
    return PartialState(cpu=not torch.cuda.is_available())


@cache
def _leave_at_exit() -> None:
    """Have the group left when the process ends.

    A thread of gloo that drops a tensor while the interpreter is shut down aborts the process. Leaving ends the
    threads, if nothing holds the group: wrapped models do until they are collected.
    """
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def on_first(action: Callable[[], _Result]) -> _Result:
    """Do something on the first process only; every process gets its result, or raises its error."""
    from accelerate.utils import broadcast_object_list

    state = processes()
    held: list[Any] = [None, None]
    if state.is_main_process:
        try:
            held = [action(), None]
        except Exception as error:  # told to all: the others would wait for ever
            held = [None, error]
    if state.num_processes > 1:
        broadcast_object_list(held, from_process=0)
    if held[1] is not None:
        raise held[1]
    result: _Result = held[0]
    return result
