"""One process at a time in a directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from apt.console.errors import UsageError

#: What a directory that was held has in it ever after.
LOCK_NAME: Final = "lock"


@contextmanager
def locked(directory: Path, *, busy: str, hint: str) -> Iterator[None]:
    """Hold a directory; the lock ends with the process, however that ends.

    :param busy: what is told when another process holds it.
    :raises UsageError: when one does, or ``directory`` is none.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{directory} is not a directory", hint="choose another") from None
    handle = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(busy, hint=hint) from None
        yield
    finally:
        os.close(handle)
