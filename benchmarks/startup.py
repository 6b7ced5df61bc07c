"""What starting costs: our ready answers and `info` against the light commands of peers, in the same run.

    python benchmarks/startup.py [--runs 30] [--directory build/startup] [--no-peers]

Two virtual environments are made (and kept) in the directory, both with torch and transformers: one holds the wheel,
the other the editable install; a third holds `llm`. Commands are run in turns, so that a change of the machine's load
falls on all of them. Figures: median user + system time (ms) of the runs, peak resident memory (MiB, GNU time),
modules imported (`-X importtime`). The exit code is 1 when a bar is missed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
READY: Final = ("--version", "--help", "plugin list --json")
#: Commands that take seconds are run less often; their figure is a thousand times what matters here.
SLOW_RUNS: Final = 5


@dataclass
class Case:
    """A command and what it must stay under; ``None`` for no bar."""

    name: str
    command: list[str]
    cpu_ms: float | None = None
    rss_mib: float | None = None
    modules: int | None = None
    forbidden: tuple[str, ...] = ()
    slow: bool = False
    seconds: list[float] = field(default_factory=list)


def environment(directory: Path, name: str, *requirements: str) -> Path:
    """Return the interpreter of an environment that holds the requirements, making it where it is not there."""
    python = directory / name / "bin" / "python"
    if not python.exists():
        print(f"making the environment {name} …", file=sys.stderr)
        venv.create(directory / name, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], check=True, cwd=ROOT)
    return python


def own_cases(label: str, python: Path) -> list[Case]:
    """Return our commands in one environment, as module and as console script."""
    cases = []
    for words in READY:
        script = [str(python.parent / "apt_model"), *words.split()]
        cases.append(
            Case(f"{label}: -m apt_model {words}", [str(python), "-m", "apt_model", *words.split()], 25, 12, 64)
        )
        cases.append(Case(f"{label}: apt_model {words}", script, 25, 12, 60))
    info = [str(python), "-m", "apt_model", "info", "tiny", "--json"]
    heavy = ("torch", "transformers", "numpy")
    cases.append(Case(f"{label}: -m apt_model info tiny --json", info, 200, None, None, forbidden=heavy))
    return cases


def peer_cases(python: Path, llm: Path) -> list[Case]:
    """Return the peers' light commands; ``hf`` and ``transformers`` live in the same environment as we do."""
    return [
        Case("hf version", [str(python.parent / "hf"), "version"]),
        Case("llm --help", [str(llm.parent / "llm"), "--help"]),
        Case("transformers --help", [str(python.parent / "transformers"), "--help"], slow=True),
    ]


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return its user + system time.

    :raises RuntimeError: when it fails.
    """
    with Path(os.devnull).open("wb") as null:
        actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), 1), (os.POSIX_SPAWN_DUP2, null.fileno(), 2)]
        process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def peak_rss_mib(command: list[str]) -> float:
    """Return the largest resident set; measured by GNU time, since a child of Python inherits Python's own peak."""
    program = shutil.which("time")
    if program is None:
        return float("nan")
    ran = subprocess.run([program, "-f", "%M", *command], capture_output=True, text=True, check=True)
    return int(ran.stderr.splitlines()[-1]) / 1024


def imported_modules(command: list[str]) -> list[str]:
    """Return the modules that a Python command imports, the interpreter's own among them."""
    words = command if "-m" in command else [str(Path(command[0]).with_name("python")), *command]
    ran = subprocess.run([words[0], "-X", "importtime", *words[1:]], capture_output=True, text=True, check=True)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return [line.rpartition("|")[2].strip() for line in lines[1:]]


def measure(cases: list[Case], runs: int) -> None:
    """Run all commands in turns; the first run of each fills caches and is not counted."""
    for case in cases:
        cpu_seconds(case.command)
    for turn in range(runs):
        for case in cases:
            if not case.slow or turn < SLOW_RUNS:
                case.seconds.append(cpu_seconds(case.command))


def report(cases: list[Case], peers: list[Case]) -> bool:
    """Print a line a command and whether every bar was held."""
    held = True
    best = min((statistics.median(p.seconds) for p in peers), default=None)
    print(f"{'command':<44} {'CPU ms':>8} {'bar':>5} {'MiB':>6} {'bar':>4} {'modules':>7} {'bar':>4}  best peer / ours")
    for case in [*cases, *peers]:
        cpu, rss = statistics.median(case.seconds) * 1000, peak_rss_mib(case.command)
        modules = imported_modules(case.command)
        pairs = ((cpu, case.cpu_ms), (rss, case.rss_mib), (len(modules), case.modules))
        missed = [m for m in case.forbidden if m in modules]
        ok = all(bar is None or value <= bar for value, bar in pairs) and not missed
        held &= ok
        ratio = f"{best * 1000 / cpu:.1f}x" if best is not None and case not in peers else ""
        bars = [str(bar) if bar is not None else "-" for _, bar in pairs]
        print(
            f"{case.name:<44} {cpu:8.1f} {bars[0]:>5} {rss:6.1f} {bars[1]:>4} {len(modules):7d} {bars[2]:>4}  {ratio}"
            f"{'' if ok else '  MISSED ' + ', '.join(missed)}"
        )
    return held


def main() -> int:
    """Make the environments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "startup")
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    pins = ("-c", "constraints.txt")
    editable = environment(directory, "editable", *pins, "-e", ".")
    environment(directory, "wheel", *pins, ".")
    wheel = environment(directory, "wheel", *pins, "--force-reinstall", "--no-deps", ".")
    os.environ.update(APT_HOME=str(directory / "home"), XDG_CACHE_HOME=str(directory / "cache"), APT_LANG="en")
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_UPDATE_CHECK="1")
    os.chdir(directory)
    cases = [*own_cases("wheel", wheel), *own_cases("editable", editable)]
    peers = [] if arguments.no_peers else peer_cases(editable, environment(directory, "llm", "llm"))
    measure([*cases, *peers], arguments.runs)
    return 0 if report(cases, peers) else 1


if __name__ == "__main__":
    sys.exit(main())
