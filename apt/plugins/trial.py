"""Importing a foreign plugin for the first time, in a child process: what it does there, it does to nobody.

A plugin that raises, exits, crashes or hangs yields a verdict with the reason; its prints go nowhere.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any, Final

from apt.console.errors import BadInputError
from apt.plugins.completion_words import shown
from apt.plugins.verdicts import Seal, Verdict, is_declaration

#: Longest trial that is waited for, from the start of the child to its answer.
SECONDS: Final = 5.0

#: Seconds and bytes beyond this were not measured.
_MOST: Final = 1 << 60

#: Bytes of a file that a plugin may write in its trial; its answer is one.
_MOST_WRITTEN: Final = 16 << 20

_CHILD: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from apt.plugins.trial import child; child(sys.argv[2], int(sys.argv[3]))"
)


def child(target: str, descriptor: int) -> None:
    """Describe a plugin and write the answer to a file; runs in the child process."""
    from apt.plugins import declare, hooks  # noqa: F401 - what a host has loaded anyway is not the plugin's cost

    _limit()
    answer: dict[str, Any]
    before, begun = _resident_bytes(), time.perf_counter()
    try:
        plugin_class = declare.load_class(target)
        seconds, taken = time.perf_counter() - begun, _resident_bytes() - before
        declared = declare.describe(plugin_class)
        answer = {"declared": declared, "import_seconds": seconds, "import_bytes": max(0, taken)}
    except BaseException as error:  # SystemExit too: this process exists to catch it
        answer = {"reason": one_line(error)}
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(answer, file)
        file.flush()
        os._exit(0)  # threads and exit handlers of the plugin are not waited for


def _limit() -> None:
    """Keep what the plugin could leave behind small: no file that fills the disk, no image of its memory."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, limit in ((resource.RLIMIT_FSIZE, _MOST_WRITTEN), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def one_line(error: BaseException) -> str:
    """Return an exception as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, BadInputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def attempt(target: str, seal: Seal, *, seconds: float = SECONDS) -> Verdict:
    """Try a foreign plugin in a child process.

    :param target: ``"module:Class"``; the class may be left out.
    :param seal: of the files that are tried.
    """
    with tempfile.TemporaryFile() as answer_file, tempfile.TemporaryDirectory() as directory:
        code = _run(target, answer_file.fileno(), directory, seconds)
        answer_file.seek(0)
        received = answer_file.read(_MOST_WRITTEN)
    if code is None:
        return Verdict(seal, f"importing it took longer than {seconds:g} s; plugin try --seconds gives it more")
    try:
        answer = json.loads(received)
        if "reason" in answer:
            return Verdict(seal, shown(str(answer["reason"])) or "?")
        took, taken = float(answer["import_seconds"]), int(answer["import_bytes"])
        if not is_declaration(answer["declared"]) or not (0 <= took < _MOST and 0 <= taken < _MOST):
            raise ValueError(answer)
        return Verdict(seal, "", answer["declared"], took, taken)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Verdict(seal, f"importing it ended the process with code {code}")


def _run(target: str, descriptor: int, directory: str, seconds: float) -> int | None:
    """Run the child until it ends and return its exit code; ``None`` when it had to be killed."""
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps([p for p in sys.path if p]), target, str(descriptor)]
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        env={**os.environ, "APT_SAFE_MODE": "1"},  # apt_model, started by the plugin, does not try it in turn
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # The whole group: what the plugin started does not outlive its trial.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
