"""What starting costs: our ready answers, with no plugin and with 200, against the light commands of peers in one run.

    python benchmarks/startup.py [--runs 30] [--directory build/startup] [--no-peers]

Virtual environments are made (and kept) in the directory, with torch and transformers: one holds the wheel, one the
wheel and 100 plugin packages (100 more plugins are files of its plugin directory), one the editable install; others
hold `llm` with a plugin that imports torch, and `datasette`. Commands are run in turns, so that a change of the
machine's load falls on all of them. Figures: median user + system time (ms) of the runs, peak resident memory (MiB,
GNU time), modules imported (`-X importtime`). The exit code is 1 when a bar is missed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
READY: Final = ("--version", "--help", "plugin list --json", "__complete fish 1 info h")
PLUGINS: Final = 100
#: With so many packages and as many drop-ins a ready answer may cost so many times what it costs without any.
MANY: Final = 1.10
#: Commands that take seconds are run less often; their figure is a thousand times what matters here.
SLOW_RUNS: Final = 5

PLUGIN: Final = """\
from apt.plugins.base import Plugin

class Made(Plugin):
    name = "{name}"
    version = "1.0"
    description = "the plugin {name}"
    required_dependencies = ["torch>=2"]

    def register_commands(self, registry):
        registry.add_command("{name}-one", "{module}:one", help="Do one thing.")
        registry.add_command("{name}-two", "{module}:two", help="Do another thing.")
"""
LLM_PLUGIN: Final = "import llm, torch\n\n@llm.hookimpl\ndef register_commands(cli): ...\n"


@dataclass
class Case:
    """A command and what it must stay under; ``None`` for no bar.

    :param environ: what differs from the environment of all commands.
    :param alone: the same command without plugins, which this one may not exceed by more than :data:`MANY`.
    """

    name: str
    command: list[str]
    cpu_ms: float | None = None
    rss_mib: float | None = None
    modules: int | None = None
    forbidden: tuple[str, ...] = ()
    slow: bool = False
    environ: dict[str, str] = field(default_factory=dict)
    alone: "Case | None" = None
    seconds: list[float] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which it runs."""
        return {**os.environ, **self.environ}


def environment(directory: Path, name: str, *requirements: str) -> Path:
    """Return the interpreter of an environment that holds the requirements, making it where it is not there."""
    python = directory / name / "bin" / "python"
    if not python.exists():
        print(f"making the environment {name} …", file=sys.stderr)
        venv.create(directory / name, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], check=True, cwd=ROOT)
    return python


def add_plugins(directory: Path, python: Path) -> None:
    """Install the plugin packages as pip does, and write the drop-ins of the home that goes with them."""
    wheels = directory / "wheels"
    wheels.mkdir(exist_ok=True)
    for i in range(PLUGINS):
        module, name = f"aptbench_{i:03}", f"bench-{i:03}"
        text = PLUGIN.format(name=name, module=f"{module}.commands")
        manifest = f'[plugin]\nname = "{name}"\nhooks = ["register_commands"]\n'
        files = {f"{module}/__init__.py": text, f"{module}/commands.py": "", f"{module}/plugin.toml": manifest}
        make_wheel(wheels, module, files, f"[apt_model.plugins]\n{name} = {module}:Made\n")
        drop_in = directory / "home-200" / "plugins" / f"drop_{i:03}.py"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(PLUGIN.format(name=f"drop-{i:03}", module=f"apt_dropins.drop_{i:03}"), encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, *map(str, sorted(wheels.glob("aptbench_*.whl")))], check=True)


def make_wheel(directory: Path, name: str, files: dict[str, str], entry_points: str) -> Path:
    """Write a pure wheel with entry points."""
    path, info = directory / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: made\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", entry_points)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def own_cases(label: str, python: Path, home: Path) -> list[Case]:
    """Return our commands in one environment, as module and as console script."""
    cases = []
    environ = {"APT_HOME": str(home)}
    for words in READY:
        module = [str(python), "-m", "apt_model", *words.split()]
        script = [str(python.parent / "apt_model"), *words.split()]
        cases.append(Case(f"{label}: -m apt_model {words}", module, 25, 12, 64, environ=environ))
        cases.append(Case(f"{label}: apt_model {words}", script, 25, 12, 60, environ=environ))
    return cases


def other_cases(label: str, python: Path, home: Path) -> list[Case]:
    """Return what answers without the cached index, and what reads a model."""
    words = [str(python), "-m", "apt_model"]
    environ = {"APT_HOME": str(home)}
    heavy = ("torch", "transformers", "numpy")
    return [
        Case(
            f"{label}: plugin list --json, no index",
            [*words, "plugin", "list", "--json"],
            120,
            environ={**environ, "APT_NO_CACHE": "1"},
            forbidden=heavy,
        ),
        Case(f"{label}: info tiny --json", [*words, "info", "tiny", "--json"], 200, forbidden=heavy, environ=environ),
    ]


def peer_cases(directory: Path, python: Path) -> list[Case]:
    """Return the peers' light commands; ``hf`` and ``transformers`` live in the same environment as we do."""
    llm = environment(directory, "llm", "-c", "constraints.txt", "torch", "llm")
    wheel = make_wheel(directory, "llm_with_torch", {"llm_with_torch.py": LLM_PLUGIN}, "[llm]\nt = llm_with_torch\n")
    pip = [str(llm), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    datasette = environment(directory, "datasette", "datasette", "setuptools<81")
    return [
        Case("hf version", [str(python.parent / "hf"), "version"]),
        Case("datasette plugins", [str(datasette.parent / "datasette"), "plugins"]),
        Case("llm plugins, one of which imports torch", [str(llm.parent / "llm"), "plugins"], slow=True),
        Case("transformers --help", [str(python.parent / "transformers"), "--help"], slow=True),
    ]


def cpu_seconds(case: Case) -> float:
    """Run a command and return its user + system time.

    :raises RuntimeError: when it fails.
    """
    command = case.command
    with Path(os.devnull).open("wb") as null:
        actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), 1), (os.POSIX_SPAWN_DUP2, null.fileno(), 2)]
        process = os.posix_spawn(command[0], command, case.variables, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def peak_rss_mib(case: Case) -> float:
    """Return the largest resident set; measured by GNU time, since a child of Python inherits Python's own peak."""
    program = shutil.which("time")
    if program is None:
        return float("nan")
    command = [program, "-f", "%M", *case.command]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=case.variables)
    return int(ran.stderr.splitlines()[-1]) / 1024


def imported_modules(case: Case) -> list[str]:
    """Return the modules that a Python command imports, the interpreter's own among them."""
    command = case.command
    words = command if "-m" in command else [str(Path(command[0]).with_name("python")), *command]
    timed = [words[0], "-X", "importtime", *words[1:]]
    ran = subprocess.run(timed, capture_output=True, text=True, check=True, env=case.variables)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return [line.rpartition("|")[2].strip() for line in lines[1:]]


def measure(cases: list[Case], runs: int) -> None:
    """Run all commands in turns; the first run of each fills caches and is not counted."""
    for case in cases:
        cpu_seconds(case)
    for turn in range(runs):
        for case in cases:
            if not case.slow or turn < SLOW_RUNS:
                case.seconds.append(cpu_seconds(case))


def report(cases: list[Case], peers: list[Case]) -> bool:
    """Print a line a command and whether every bar was held."""
    held = True
    best = min((statistics.median(p.seconds) for p in peers), default=None)
    print(f"{'command':<50} {'CPU ms':>8} {'bar':>5} {'MiB':>6} {'bar':>4} {'modules':>7} {'bar':>4}  best peer / ours")
    for case in [*cases, *peers]:
        cpu, rss = statistics.median(case.seconds) * 1000, peak_rss_mib(case)
        modules = imported_modules(case)
        pairs = ((cpu, case.cpu_ms), (rss, case.rss_mib), (len(modules), case.modules))
        missed = [m for m in case.forbidden if m in modules]
        ok = all(bar is None or value <= bar for value, bar in pairs) and not missed
        ratio = f"{best * 1000 / cpu:.1f}x" if best is not None and case not in peers else ""
        if case.alone is not None:
            times = cpu / 1000 / statistics.median(case.alone.seconds)
            ok &= times <= MANY
            ratio += f", {times:.3f} x without plugins (bar {MANY})"
        held &= ok
        bars = [str(bar) if bar is not None else "-" for _, bar in pairs]
        print(
            f"{case.name:<50} {cpu:8.1f} {bars[0]:>5} {rss:6.1f} {bars[1]:>4} {len(modules):7d} {bars[2]:>4}  {ratio}"
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
    many = environment(directory, "wheel-200", *pins, ".")
    environment(directory, "wheel-200", *pins, "--force-reinstall", "--no-deps", ".")
    add_plugins(directory, many)
    os.environ.update(XDG_CACHE_HOME=str(directory / "cache"), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_UPDATE_CHECK="1")
    # Python keeps bytecode by default; a machine that is set up otherwise would measure the compiler.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.chdir(directory)
    none = directory / "home"
    cases = [*own_cases("wheel", wheel, none), *own_cases("editable", editable, none)]
    with_many = own_cases("200 plugins", many, directory / "home-200")
    for case, alone in zip(with_many, cases, strict=False):
        case.alone = alone
    cases += [*with_many, *other_cases("wheel", wheel, none)]
    peers = [] if arguments.no_peers else peer_cases(directory, editable)
    measure([*cases, *peers], arguments.runs)
    return 0 if report(cases, peers) else 1


if __name__ == "__main__":
    sys.exit(main())
