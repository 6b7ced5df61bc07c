"""Reading what others may have put there: regular files only, and no more of them than is wanted.

A pipe would be waited for, a device never ends, and a sparse file of some GB fits on any disk.
"""

import os
import stat
from pathlib import Path

from apt.console.errors import BadInputError


def read_regular(file: Path, limit: int) -> bytes:
    """Return a file's content.

    :raises BadInputError: when it is no regular file, or larger than ``limit`` bytes.
    :raises OSError: when it cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadInputError(f"{file.name} is not a regular file")
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise BadInputError(f"{file.name} is larger than {limit >> 10} KiB")
    return data
