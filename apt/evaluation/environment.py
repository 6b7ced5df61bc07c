"""``debug`` without a model: what this computer and this Python offer, and what stands in the way."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.diagnosis import findings_tables
from apt.checkpoint.findings import Finding, error, note, warning
from apt.console.table import Table
from apt.console.units import format_bytes
from apt.evaluation.environment_checks import (
    device_findings,
    encoding_findings,
    limit_findings,
    place_findings,
    version_findings,
)
from apt.store import home, hub_cache

#: Packages whose versions decide what works.
PACKAGES: Final = (
    "apt-model", "torch", "transformers", "safetensors", "tokenizers", "numpy", "pydantic", "typer", "huggingface_hub",
    "accelerate", "torchvision", "gguf", "xllamacpp",
)  # fmt: skip
#: The core cannot run models without these.
_NEEDED: Final = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
#: Free bytes below which outputs are likely to fail.
LITTLE_DISK_BYTES: Final = 2 << 30
LITTLE_MEMORY_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """Something that computes; ``memory_bytes`` is all it has, ``None`` where it shares the computer's."""

    name: str
    kind: str
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class PluginState:
    """A plugin's status, as the plugin host tells it."""

    name: str
    status: str
    reason: str
    mend: str


@dataclass(frozen=True, slots=True)
class PluginCheck:
    """What a plugin found of its own part of the environment."""

    check: str
    ok: bool
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Environment:
    """What ``debug`` tells without a model.

    :param checks: what the plugins' own diagnostics found.
    :param packages: version by package; "" for one that is not installed.
    :param store_free_bytes: free on the disk of the store; ``here_free_bytes`` on that of the current directory.
    """

    python: str
    executable: Path
    system: str
    cpus: int
    torch_threads: int | None
    memory_bytes: int
    available_bytes: int
    store: Path
    store_free_bytes: int
    here_free_bytes: int
    hub_cache: Path
    packages: dict[str, str]
    devices: tuple[Device, ...]
    plugins: tuple[PluginState, ...]
    checks: tuple[PluginCheck, ...]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether no finding is an error."""
        return not any(f.severity == "error" for f in self.findings)

    def tables(self) -> list[Table]:
        """Return facts, packages, plugins and findings."""
        threads = "" if self.torch_threads is None else f", torch uses {self.torch_threads} threads"
        facts = [
            ["Python", f"{self.python} ({self.executable})"],
            ["system", self.system],
            ["processors", f"{self.cpus}{threads}"],
            ["memory", f"{format_bytes(self.available_bytes)} of {format_bytes(self.memory_bytes)} free"],
            ["store", f"{self.store}, {format_bytes(self.store_free_bytes)} free"],
            ["this directory", f"{format_bytes(self.here_free_bytes)} free"],
            ["Hugging Face cache", f"{self.hub_cache}{'' if self.hub_cache.is_dir() else ' (none yet)'}"],
            *([f"device {d.kind}", self._device(d)] for d in self.devices),
        ]
        packages = [[name, version or "not installed"] for name, version in self.packages.items()]
        plugins = [[p.name, p.status, p.reason, p.mend] for p in self.plugins]
        tables = [Table("Environment", ("what", "value"), facts), Table("Packages", ("package", "version"), packages)]
        if plugins:
            tables.append(Table("Plugins", ("plugin", "status", "reason", "mend"), plugins))
        if self.checks:
            rows = [[c.check, "ok" if c.ok else "FAILED", c.message] for c in self.checks]
            tables.append(Table("Checks of plugins", ("check", "result", "found"), rows))
        return [*tables, *findings_tables(self.findings)]

    def _device(self, device: Device) -> str:
        return device.name if device.memory_bytes is None else f"{device.name}, {format_bytes(device.memory_bytes)}"


def environment(plugins: Iterable[PluginState] = (), checks: Iterable[PluginCheck] = ()) -> Environment:
    """Look at the environment; torch is imported to ask for its devices.

    :param plugins: their states, which only the plugin host knows; ``checks`` alike.
    """
    import psutil

    memory = psutil.virtual_memory()
    states, checked = tuple(plugins), tuple(checks)
    packages = {name: _version(name) for name in PACKAGES}
    devices, threads, torch_problem = _devices()
    free = {place: shutil.disk_usage(_existing(place)).free for place in (home(), Path.cwd())}
    findings = [
        *_package_findings(packages, torch_problem),
        *version_findings(packages),
        *_shadow_findings(),
        *encoding_findings(),
        *place_findings(),
        *limit_findings(os.environ, _cpus(), int(memory.total)),
        *_graphics_findings(torch_problem),
        *_room_findings(free, int(memory.available)),
        *_plugin_findings(states),
        *(warning("plugin-check", c.check, c.message, "a plugin's own check", c.hint) for c in checked if not c.ok),
    ]
    return Environment(
        python=platform.python_version(),
        executable=Path(sys.executable),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpus=_cpus(),
        torch_threads=threads,
        memory_bytes=int(memory.total),
        available_bytes=int(memory.available),
        store=home(),
        store_free_bytes=free[home()],
        here_free_bytes=free[Path.cwd()],
        hub_cache=hub_cache(),
        packages=packages,
        devices=devices,
        plugins=states,
        checks=checked,
        findings=tuple(findings),
    )


def other_apt_packages(search_path: Iterable[str]) -> list[Path]:
    """Return packages called ``apt`` that are not ours (Debian's python3-apt is one), in the order of the path."""
    own = Path(__file__).parents[1].resolve()
    found = []
    for entry in search_path:
        for candidate in (Path(entry or ".") / "apt", Path(entry or ".") / "apt.py"):
            sound = (candidate / "__init__.py").is_file() if candidate.suffix != ".py" else candidate.is_file()
            if sound and candidate.resolve() != own:
                found.append(candidate.absolute())
    return found


def _shadow_findings() -> Iterator[Finding]:
    own = Path(__file__).parents[1].resolve()
    others = other_apt_packages(sys.path)
    for other in others:
        first = not any((Path(e or ".") / "apt").resolve() == own for e in _until(sys.path, other))
        yield (error if first else note)(
            "other-apt", str(other),
            "another package is called apt" + (" and is found before ours" if first else "; ours is found first"),
            "the system's python3-apt, or a directory of that name",
            "run apt_model from a virtual environment without system packages, in another directory",
        )  # fmt: skip


def _until(search_path: Iterable[str], other: Path) -> Iterator[str]:
    """Yield the entries before the one that holds ``other``."""
    for entry in search_path:
        if other.parent == Path(entry or ".").absolute():
            return
        yield entry


def _package_findings(packages: dict[str, str], torch_problem: str) -> Iterator[Finding]:
    for name in _NEEDED:
        if not packages[name]:
            yield error(
                "missing-package", name, "is not installed", "an incomplete installation",
                f"{sys.executable} -m pip install {name}",
            )  # fmt: skip
    transformers = packages["transformers"]
    if transformers and int(transformers.partition(".")[0]) < 5:
        yield error(
            "old-package", "transformers", f"is {transformers}; configs and weights here are those of 5",
            "another package pinned it", f'{sys.executable} -m pip install "transformers>=5,<6"',
        )  # fmt: skip
    if torch_problem and packages["torch"]:
        yield error(
            "broken-package", "torch", torch_problem, "a build for another computer, or a missing system library",
            f"{sys.executable} -m pip install --force-reinstall torch",
        )  # fmt: skip


def _room_findings(free: dict[Path, int], available: int) -> Iterator[Finding]:
    for place, size in free.items():
        if size < LITTLE_DISK_BYTES:
            yield warning(
                "little-disk", str(place), f"{format_bytes(size)} are free", "the disk is nearly full",
                "free space, or set APT_HOME to another disk",
            )  # fmt: skip
        if not os.access(_existing(place), os.W_OK):
            yield warning(
                "not-writable", str(place), "cannot be written", "it belongs to another user, or is mounted read-only",
                "set APT_HOME to a directory of yours, or work in another directory",
            )  # fmt: skip
    if available < LITTLE_MEMORY_BYTES:
        yield warning(
            "little-memory", "memory", f"{format_bytes(available)} are free", "other programs hold it", "end some"
        )


def _plugin_findings(plugins: Iterable[PluginState]) -> Iterator[Finding]:
    for plugin in plugins:
        if plugin.status not in ("ready", "disabled"):
            yield warning("plugin", plugin.name, plugin.reason, "it cannot be used as it is", plugin.mend)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices() -> tuple[tuple[Device, ...], int | None, str]:
    """Return the devices that torch sees, its threads, and why it cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as problem:
        return (), None, str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    found = [Device(platform.processor() or platform.machine(), "cpu", None)]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found.append(Device(properties.name, f"cuda:{i}", int(properties.total_memory)))
    if torch.backends.mps.is_available():
        found.append(Device("Apple GPU", "mps", None))
    return tuple(found), torch.get_num_threads(), ""


def _graphics_findings(torch_problem: str) -> Iterator[Finding]:
    if torch_problem:
        return
    import torch

    driver = Path("/proc/driver/nvidia/version").exists()
    yield from device_findings(driver, torch.version.cuda, torch.cuda.device_count())


def _cpus() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _existing(path: Path) -> Path:
    """Return the nearest directory that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
