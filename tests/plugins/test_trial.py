"""Trying foreign code in a child: whatever it does there, there is a verdict."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.plugins import build, trial
from apt.plugins.verdicts import Seal, Verdict

Dropin = Callable[[str, str], Path]
Source = Callable[..., str]

#: What a plugin does when it is imported, and the reason that its trial gives.
HOSTILE = {
    "raises": ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
    "raises_base": ("raise BaseException('all')", "BaseException: all"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "dies": ("import os; os._exit(0)", "importing it ended the process with code 0"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "importing it ended the process with code -11"),
    "imports": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "recurses": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "kills": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended the process with code -9"),
}


def attempt(path: Path, seconds: float = 60.0) -> Verdict:
    """Give a trial more time than it has elsewhere: what is tested here does not depend on how loaded a machine is."""
    return trial.attempt(f"apt_dropins.{path.stem}:", Seal.of(path), seconds=seconds)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_sound_plugin_says_what_it_registers_and_what_its_import_costs(dropin: Dropin, plugin_source: Source) -> None:
    top = "ballast = bytearray(32 << 20)\nballast[::4096] = b'x' * len(ballast[::4096])\nimport time; time.sleep(0.2)"
    verdict = attempt(dropin("one.py", plugin_source("one", top=top)))
    assert verdict.reason == ""
    assert verdict.declared["commands"] == [{"name": "one-command", "target": "", "help": "Say hello."}]
    assert verdict.declared["class"] == "apt_dropins.one:Made"
    assert 0.2 <= verdict.import_seconds < 60.0
    assert 30 << 20 <= verdict.import_bytes < 60 << 20


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_import_gives_a_reason(name: str, dropin: Dropin, plugin_source: Source) -> None:
    top, reason = HOSTILE[name]
    verdict = attempt(dropin("bad.py", plugin_source("bad", top=top)))
    assert reason in verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    "answer",
    [
        '{"declared": {"name": "bad", "commands": [{}]}, "import_seconds": 0, "import_bytes": 0}',
        '{"declared": [], "import_seconds": 0, "import_bytes": 0}',
        '{"declared": {}}',
        "[" * 100_000,
        "3",
    ],
)
def test_answer_that_the_plugin_wrote_itself_is_none(answer: str, dropin: Dropin, plugin_source: Source) -> None:
    top = (
        f"import os\nfor descriptor in range(3, 30):\n    try: os.write(descriptor, {answer.encode()!r})\n"
        "    except OSError: pass\nos._exit(0)"
    )
    verdict = attempt(dropin("bad.py", plugin_source("bad", top=top)))
    assert verdict.reason == "importing it ended the process with code 0"


def test_reason_is_one_line_that_a_terminal_can_show(dropin: Dropin, plugin_source: Source) -> None:
    verdict = attempt(dropin("bad.py", plugin_source("bad", top=r"raise ValueError('\ud800 \x1b[31m坏')")))
    assert verdict.reason == "ValueError: [31m坏"


def test_plugin_that_starts_apt_model_is_tried_once(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    top = (
        "import subprocess, sys\n"
        f"open({str(trace)!r}, 'a').write('x')\n"
        "ran = subprocess.run([sys.executable, '-m', 'apt_model', 'size', 'tiny', '--quiet'], capture_output=True)\n"
        f"open({str(trace)!r}, 'a').write(f'{{ran.returncode}}')\n"
    )
    path = dropin("one.py", plugin_source("one", top=top, body="    def before_operation(self): ..."))
    build.build()
    assert attempt(path, seconds=60).reason == ""
    assert trace.read_text() == "x0"


def _until(note: Path) -> type[subprocess.Popen[bytes]]:
    """A process whose time is over as soon as it has written a number down, however slow the machine is."""

    class Process(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            while timeout is not None and self.poll() is None:
                if note.exists() and note.read_text().endswith("."):
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.01)
            return super().wait()

    return Process


def test_loop_that_swallows_exceptions_is_killed_with_what_it_started(
    dropin: Dropin, plugin_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    top = (
        "import signal, subprocess, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"with open({str(note)!r}, 'w') as file: file.write(f'{{child.pid}}.')\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    )
    monkeypatch.setattr(trial.subprocess, "Popen", _until(note))
    verdict = attempt(dropin("loop.py", plugin_source("loop", top=top)), seconds=60)
    assert verdict.reason == "importing it took longer than 60 s; plugin try --seconds gives it more"
    pid = int(note.read_text()[:-1])
    for _ in range(100):  # init takes a moment to reap it
        if not _runs(pid):
            return
        time.sleep(0.05)
    pytest.fail("the plugin's child outlived the trial")


@pytest.mark.parametrize(
    "thread",
    [
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "threading.Thread(target=time.sleep, args=(0.05,)).start()",
        "pool = concurrent.futures.ThreadPoolExecutor(2); pool.submit(print).result()",
    ],
)
def test_threads_that_end_and_exit_handlers_are_not_waited_for(
    thread: str, dropin: Dropin, plugin_source: Source
) -> None:
    top = f"import atexit, concurrent.futures, threading, time\natexit.register(time.sleep, 600)\n{thread}"
    assert attempt(dropin("thread.py", plugin_source("thread", top=top))).reason == ""


def test_thread_that_does_not_end_is_a_reason(dropin: Dropin, plugin_source: Source) -> None:
    top = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='工人').start()"
    verdict = attempt(dropin("thread.py", plugin_source("thread", top=top)))
    assert verdict.reason == "it leaves the thread '工人' running, which keeps every command from ending"


def test_exception_without_a_text_is_told_by_its_type(dropin: Dropin, plugin_source: Source) -> None:
    top = "class Mute(BaseException):\n    def __str__(self): raise self\nraise Mute"
    assert attempt(dropin("mute.py", plugin_source("mute", top=top))).reason == "Mute"


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2)])
def test_caller_may_have_closed_the_standard_streams(
    closed: tuple[int, ...], dropin: Dropin, plugin_source: Source, tmp_path: Path
) -> None:
    path, told = dropin("one.py", plugin_source("one")), tmp_path / "told"
    code = (
        f"import os\nfor descriptor in {closed}: os.close(descriptor)\n"
        "from pathlib import Path\nfrom apt.plugins import trial\nfrom apt.plugins.verdicts import Seal\n"
        f"verdict = trial.attempt('apt_dropins.one:', Seal.of(Path({str(path)!r})))\n"
        f"Path({str(told)!r}).write_text(repr((verdict.reason, verdict.declared['name'])))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert told.read_text() == "('', 'one')"


def test_relative_paths_are_those_of_the_caller(
    plugin_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APT_HOME", "主目录")
    monkeypatch.setattr(sys, "path", [*sys.path, "库"])
    path = tmp_path / "主目录" / "plugins" / "one.py"
    path.parent.mkdir(parents=True)
    path.write_text(plugin_source("one", top="import beside_the_caller"), encoding="utf-8")
    (tmp_path / "库").mkdir()
    (tmp_path / "库" / "beside_the_caller.py").write_text("")
    assert attempt(path).reason == ""


@pytest.mark.parametrize("top", ["while True: pass", "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass"])
def test_trial_ends_though_who_waits_for_it_was_killed(
    top: str, dropin: Dropin, plugin_source: Source, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    first = f"import os, signal\nwith open({str(note)!r}, 'w') as file: file.write(f'{{os.getpid()}}.')\n"
    dropin("loop.py", plugin_source("loop", top=first + top))
    code = (
        "from apt.plugins import trial\n"
        # The bound is the child's own, counted from when it is ready to import; nobody else ends it sooner.
        "ready = trial._CHILD.replace('float(sys.argv[4])', '1.0')\n"
        "assert ready != trial._CHILD\n"
        "trial._CHILD = 'import os; os.cpu_count = lambda: 1; ' + ready\n"
        "from apt.plugins.verdicts import Seal\ntrial.attempt('apt_dropins.loop:', Seal('', 0, 0, ''), seconds=600.0)"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code])
    while not (note.exists() and note.read_text().endswith(".")):
        assert waiting.poll() is None, "the trial ended before the plugin was imported"
        time.sleep(0.01)
    waiting.kill()
    waiting.wait()
    pid = int(note.read_text()[:-1])
    for _ in range(600):
        if not _runs(pid):
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the trial outlived its bound")


def test_prints_reach_nobody_and_files_land_nowhere(
    dropin: Dropin, plugin_source: Source, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    top = "import os; print('x' * 100000); os.write(1, b'raw'); open('left-behind', 'w').close()"
    assert attempt(dropin("loud.py", plugin_source("loud", top=top))).reason == ""
    assert capfd.readouterr() == ("", "")
    assert not Path("left-behind").exists()


def test_torch_is_not_imported_by_the_trial_itself() -> None:
    code = "import apt.plugins.trial, sys; assert not {'torch', 'numpy', 'pluggy', 'psutil'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_index_is_built_without_any_trial(
    dropin: Dropin, plugin_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "attempt", None)
    dropin("one.py", plugin_source("one"))
    assert build.build().plugin("one").status == "untried"


def test_plugin_fills_no_disk(dropin: Dropin, plugin_source: Source, tmp_path: Path) -> None:
    path = tmp_path / "large"
    top = f"with open({str(path)!r}, 'wb') as file:\n    for _ in range(64): file.write(bytes(1 << 20))"
    verdict = attempt(dropin("fill.py", plugin_source("fill", top=top)))
    assert "File too large" in verdict.reason
    assert path.stat().st_size <= 16 << 20
