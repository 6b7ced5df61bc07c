"""What of an environment is known to break things: versions that do not fit, encodings, limits, places of caches."""

import importlib.metadata
import locale
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.findings import Finding, error, note, warning
from apt.console.units import format_bytes
from apt.store import hub_cache

#: Files that a process may have open below which a sharded model with many shards is likely to fail.
FEW_FILES: Final = 256

_PIP: Final = f"{sys.executable} -m pip install"


@dataclass(frozen=True, slots=True)
class BadPair:
    """Versions that are each sound and fail together; the ranges are version specifiers, "" for any."""

    first: str
    first_range: str
    second: str
    second_range: str
    evidence: str
    mend: str


#: Combinations that pip's own metadata does not refuse.
BAD_PAIRS: Final = (
    BadPair("numpy", ">=2", "torch", "<2.3", "that torch was built for numpy 1: tensors do not convert",
            'pip install "numpy<2"'),
    BadPair("transformers", ">=5", "torch", "<2.4", "transformers 5 hides its models from a torch before 2.4",
            'pip install "torch>=2.6"'),
    BadPair("typer", ">=0.30", "apt-model", "", "the command line is tested with typer 0.20 to 0.29",
            'pip install "typer<0.30"'),
    BadPair("accelerate", "<1.1", "transformers", ">=5", "Trainer of transformers 5 needs accelerate 1.1",
            'pip install "accelerate>=1.1"'),
)  # fmt: skip


def version_findings(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Versions that contradict one another: by each package's own requirements, and by what is known here.

    :param versions: installed version by package; "" where one is not installed.
    """
    yield from _unmet_requirements(versions)
    for pair in BAD_PAIRS:
        if _inside(versions.get(pair.first, ""), pair.first_range) and _inside(
            versions.get(pair.second, ""), pair.second_range
        ):
            yield error(
                "bad-versions", f"{pair.first} and {pair.second}",
                f"{versions[pair.first]} with {versions[pair.second]}: {pair.evidence}",
                "installed at different times, or pinned by another package", pair.mend,
            )  # fmt: skip
    yield from _torchvision(versions.get("torch", ""), versions.get("torchvision", ""))


def _torchvision(torch: str, torchvision: str) -> Iterator[Finding]:
    """A torchvision 0.(n + 15) belongs to torch 2.n; another pair breaks the import of many models."""
    both = [v.partition("+")[0].split(".") for v in (torch, torchvision)]
    if not (torch and torchvision) or any(len(v) < 2 or not (v[0] + v[1]).isdigit() for v in both) or both[0][0] != "2":
        return
    fitting = int(both[0][1]) + 15
    if both[1][0] == "0" and int(both[1][1]) != fitting:
        yield error(
            "bad-versions", "torch and torchvision",
            f"{torch} with {torchvision}: its compiled operators belong to another torch (0.{fitting} fits)",
            "one of the two was updated alone", f'{_PIP} "torchvision==0.{fitting}.*", or uninstall torchvision',
        )  # fmt: skip


def _unmet_requirements(versions: Mapping[str, str]) -> Iterator[Finding]:
    """What ``pip check`` tells, of the packages that matter here."""
    from packaging.requirements import InvalidRequirement, Requirement

    for name, version in versions.items():
        try:
            stated = importlib.metadata.requires(name) or [] if version else []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in stated:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            have = versions.get(requirement.name) or _installed(requirement.name)
            if have and not requirement.specifier.contains(have, prereleases=True):
                yield error(
                    "version-conflict", requirement.name,
                    f"is {have}; {name} {version} needs {requirement.specifier}",
                    "installed at different times, or pinned by another package",
                    f'{_PIP} "{requirement.name}{requirement.specifier}"',
                )  # fmt: skip


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _inside(version: str, specifiers: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return bool(version) and SpecifierSet(specifiers).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def encoding_findings(streams: Iterable[Any] = ()) -> Iterator[Finding]:
    """Encodings that cannot hold Chinese or emoji, and a locale that the system does not have."""
    mend = "export LANG=C.UTF-8 LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    for stream in streams or (sys.stdout,):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        if encoding.lower().replace("-", "") not in ("utf8", "utf8sig"):
            yield warning(
                "encoding", "stdout", f"is {encoding}: other characters are written as escapes",
                "the locale names another encoding", mend,
            )  # fmt: skip
    if sys.getfilesystemencoding().lower() != "utf-8":
        yield warning(
            "encoding", "file names", f"are in {sys.getfilesystemencoding()}", "the locale names another encoding",
            mend,
        )  # fmt: skip
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "")
    except locale.Error:
        named = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG")
        yield warning("locale", str(named), "is not installed on this system", "copied from another computer", mend)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def place_findings(cache: Path | None = None, temporary: Path | None = None) -> Iterator[Finding]:
    """Caches and the directory for temporary files: there, and writable."""
    places = {"HF_HOME": cache or hub_cache(), "TMPDIR": temporary or Path(tempfile.gettempdir())}
    for variable, place in places.items():
        nearest = next((p for p in (place.absolute(), *place.absolute().parents) if p.exists()), place)
        if not nearest.is_dir():
            yield error(
                "not-a-directory", str(nearest), f"{variable} leads there, and it is a file",
                "a file stands in the way", f"move it, or set {variable} to a directory",
            )  # fmt: skip
        elif not os.access(nearest, os.W_OK | os.X_OK):
            yield warning(
                "not-writable", str(place), "cannot be written: downloads and temporary files will fail",
                "it belongs to another user, or is mounted read-only", f"set {variable} to a directory of yours",
            )  # fmt: skip


def limit_findings(environ: Mapping[str, str], cpus: int, total_memory: int) -> Iterator[Finding]:
    """Limits of the process that surprise: open files, threads, a container's memory, a network turned off."""
    files = _open_files()
    if files is not None and files < FEW_FILES:
        yield warning(
            "few-files", "ulimit -n", f"{files} files may be open at once", "a low limit of the shell or the container",
            "ulimit -n 4096",
        )  # fmt: skip
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cpus:
        yield warning(
            "threads", "OMP_NUM_THREADS", f"is {threads}, this process may use {cpus} processors: threads wait for one "
            "another", "set for another computer", f"export OMP_NUM_THREADS={cpus}, or unset it",
        )  # fmt: skip
    allowed = container_memory()
    if allowed is not None and allowed < total_memory:
        yield note(
            "memory-limit", "container", f"may use {format_bytes(allowed)} of {format_bytes(total_memory)}",
            "a limit of the container", "more than that ends the process without a message",
        )  # fmt: skip
    switches = {
        "HF_HUB_OFFLINE": environ.get("HF_HUB_OFFLINE", ""),
        "TRANSFORMERS_OFFLINE": environ.get("TRANSFORMERS_OFFLINE", ""),
    }
    offline = [name for name, value in switches.items() if value.lower() in ("1", "true", "on", "yes")]
    if offline:
        yield note(
            "offline", offline[0], "is set: nothing is fetched from the Hub", "set on purpose, or left over",
            f"unset {' '.join(offline)} to fetch models",
        )  # fmt: skip


def device_findings(has_driver: bool, cuda_build: str | None, cuda_devices: int) -> Iterator[Finding]:
    """A graphics card that torch does not use.

    :param has_driver: whether the system has NVIDIA's driver; ``cuda_build``: torch's CUDA version, ``None`` for a CPU
        build.
    """
    if not has_driver or cuda_devices:
        return
    cause = "this torch is a CPU build" if cuda_build is None else f"torch's CUDA {cuda_build} does not fit the driver"
    yield warning(
        "gpu-unused", "torch", "an NVIDIA driver is here, torch sees no device", cause,
        "install the build for your CUDA version: https://pytorch.org/get-started",
    )  # fmt: skip


def container_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory that the control group allows, in bytes; ``None`` without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft
