"""Importing a foreign plugin for the first time, in a child process: what it does there, it does to nobody.

A plugin that raises, exits, crashes or hangs yields a verdict with the reason; its prints go nowhere.
"""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, Final

from apt.console.errors import one_line
from apt.plugins import index
from apt.plugins.completion_words import shown
from apt.plugins.verdicts import MOST, Seal, Verdict, is_declaration

#: Longest trial that is waited for, from the start of the child to its answer.
SECONDS: Final = 5.0

#: Bytes of a file that a plugin may write in its trial; its answer is one.
_MOST_WRITTEN: Final = 16 << 20

#: How long a thread may run on after the import before it counts as one that does not end.
_THREAD_SECONDS: Final = 0.5

_CHILD: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from apt.plugins.trial import child; child(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))"
)


def child(target: str, descriptor: int, seconds: float) -> None:
    """Describe a plugin and write the answer to a file; runs in the child process."""
    from apt.plugins import declare, hooks  # noqa: F401 - what a host has loaded anyway is not the plugin's cost

    _limit(seconds)
    answer: dict[str, Any]
    before, begun = _resident_bytes(), time.perf_counter()
    try:
        plugin_class = declare.load_class(target)
        took, taken = time.perf_counter() - begun, _resident_bytes() - before
        declared = declare.describe(plugin_class)
        answer = {"declared": declared, "import_seconds": took, "import_bytes": max(0, taken)}
        if left := _thread_left():
            answer = {"reason": f"it leaves the thread {left!r} running, which keeps every command from ending"}
    except BaseException as error:  # SystemExit too: this process exists to catch it
        answer = {"reason": one_line(error)}
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(answer, file)
        file.flush()
        os._exit(0)  # threads and exit handlers of the plugin are not waited for


def _thread_left() -> str:
    """Return the name of a thread that Python would wait for at the end of the process; ``""`` without one.

    Those that soon end by themselves do not count, nor do the workers of an executor, which Python ends.
    """
    ends = time.monotonic() + _THREAD_SECONDS
    workers = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", {})
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon and thread not in workers:
            thread.join(max(0, ends - time.monotonic()))
            if thread.is_alive():
                return thread.name
    return ""


def _limit(seconds: float) -> None:
    """Keep what the plugin could leave behind small: no file that fills the disk, no image of its memory.

    The time is bound, too, should who waits for the answer be killed: by a timer, which a plugin might take for
    itself, and by the time on processors, of which threads may use several at once.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    bound = math.ceil(seconds) + 1
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, bound)
    limits = (
        (resource.RLIMIT_FSIZE, _MOST_WRITTEN),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, bound * (os.cpu_count() or 1)),
    )
    for what, limit in limits:
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def attempt(target: str, seal: Seal, *, seconds: float = SECONDS) -> Verdict:
    """Try a foreign plugin in a child process.

    :param target: ``"module:Class"``; the class may be left out.
    :param seal: of the files that are tried.
    """
    with tempfile.TemporaryFile() as answer_file, tempfile.TemporaryDirectory() as directory:
        # Where the caller has closed a standard stream, the file could have its number, which the child needs.
        descriptor = fcntl.fcntl(answer_file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            code = _run(target, descriptor, directory, seconds)
        finally:
            os.close(descriptor)
        answer_file.seek(0)
        received = answer_file.read(_MOST_WRITTEN)
    if code is None:
        return Verdict(seal, f"importing it took longer than {seconds:g} s; plugin try --seconds gives it more")
    try:
        answer = json.loads(received)
        if "reason" in answer:
            return Verdict(seal, shown(str(answer["reason"])) or "?")
        took, taken = float(answer["import_seconds"]), int(answer["import_bytes"])
        if not is_declaration(answer["declared"]) or not (0 <= took < MOST and 0 <= taken < MOST):
            raise ValueError(answer)
        return Verdict(seal, "", answer["declared"], took, taken)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Verdict(seal, f"importing it ended the process with code {code}")


def _run(target: str, descriptor: int, directory: str, seconds: float) -> int | None:
    """Run the child until it ends and return its exit code; ``None`` when it had to be killed."""
    # It runs in another directory; an entry that names no file belongs to an import hook.
    path = json.dumps([os.path.abspath(p) if os.path.exists(p) else p for p in sys.path if p])  # noqa: PTH100, PTH110
    command = [sys.executable, "-P", "-c", _CHILD, path, target, str(descriptor), str(seconds)]
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        # apt_model, started by the plugin, does not try it in turn.
        env={**os.environ, "APT_SAFE_MODE": "1", "APT_HOME": index.home()},
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
