"""Importing a foreign plugin for the first time, in a child process: what it does there, it does to nobody.

A plugin that raises, exits, crashes or hangs yields a reason; its prints go nowhere.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Final

from apt.console.errors import BadInputError
from apt.plugins.declare import describe

#: Longest import that is waited for. A plugin that imports torch at its top takes some seconds on a busy machine.
SECONDS: Final = 30

_CHILD: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from apt.plugins.trial import child; child(sys.argv[2], int(sys.argv[3]))"
)


def child(target: str, descriptor: int) -> None:
    """Describe a plugin and write the answer to a file; runs in the child process."""
    answer: dict[str, Any]
    try:
        answer = {"declared": describe(target)}
    except BaseException as error:  # SystemExit too: this process exists to catch it
        answer = {"error": one_line(error)}
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(answer, file)


def one_line(error: BaseException) -> str:
    """Return an exception as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, BadInputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def describe_in_child(target: str) -> dict[str, Any]:
    """Return what a foreign plugin declares.

    :raises BadInputError: with the reason, when it cannot be loaded.
    """
    with tempfile.TemporaryFile() as answer_file:
        code = _run(target, answer_file.fileno())
        answer_file.seek(0)
        received = answer_file.read()
    try:
        answer = json.loads(received)
    except ValueError:
        raise BadInputError(f"importing it ended the process with code {code}") from None
    if "error" in answer:
        raise BadInputError(answer["error"])
    declared: dict[str, Any] = answer["declared"]
    return declared


def _run(target: str, descriptor: int) -> int:
    """Run the child until it ends and return its exit code; :raises BadInputError: when it does not end in time."""
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps([p for p in sys.path if p]), target, str(descriptor)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        start_new_session=True,
    )
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        raise BadInputError(f"importing it took longer than {SECONDS} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
