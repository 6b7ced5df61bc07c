"""What tests of interrupted work share."""

import os
import signal
from collections.abc import Callable


def killed(action: Callable[[], object]) -> None:
    """Do something in a process of its own that has to end by a kill."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
