"""The pip of this interpreter: wheels fetched or built, packages installed and uninstalled.

pip runs in a process of its own, under a constraint that keeps torch, transformers and numpy as they are.
"""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from apt.console.errors import AptError, MissingDependencyError, NetworkError
from apt.plugins.dependencies import held_versions

_QUIET: Final = ("--quiet", "--disable-pip-version-check", "--no-input")
_NO_NETWORK: Final = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Read timed out|Connection refused"
    r"|Connection reset|Connection aborted|Temporary failure in name resolution|ProxyError|SSLError"
)


def available() -> bool:
    """Whether this interpreter has pip."""
    return importlib.util.find_spec("pip") is not None


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip; the current directory is not searched for its modules.

    :raises MissingDependencyError: when this interpreter has no pip.
    """
    if not available():
        raise MissingDependencyError("this Python has no pip", hint=f"{sys.executable} -m ensurepip")
    command = [sys.executable, "-P", "-m", "pip", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    importlib.invalidate_caches()  # what it changed is seen by this process, too
    return done


def install(
    requirements: Sequence[str], *, pins: Sequence[str] = (), replace: bool = False, dry_run: bool = False
) -> tuple[str, ...]:
    """Install requirements and what they need; return ``name==version`` of what was (or would be) installed.

    :param pins: further constraints, ``name==version``.
    :param replace: put the requirements in place of what is installed in the same version, and nothing else.
    :raises AptError: with pip's reason, when it does not succeed; then nothing has changed.
    :raises NetworkError: when that is because no index could be reached.
    """
    with tempfile.TemporaryDirectory() as directory:
        constraint = Path(directory, "constraints.txt")
        constraint.write_text("".join(f"{line}\n" for line in (*held_versions(), *pins)), encoding="utf-8")
        report = Path(directory, "report.json")
        arguments = ["install", *_QUIET, "--constraint", str(constraint), "--report", str(report)]
        arguments += [*(["--dry-run"] if dry_run else []), *(["--no-deps", "--force-reinstall"] if replace else [])]
        done = pip(*arguments, "--", *requirements)
        if done.returncode != 0:
            raise failure(done.stderr, "install", requirements)
        return tuple(sorted(f"{e['metadata']['name']}=={e['metadata']['version']}" for e in _entries(report)))


def wheel(requirement: str, directory: Path) -> Path:
    """Fetch or build the wheel of one requirement, without what it needs, and return its file.

    :param requirement: a requirement, an archive or a directory; the latter's build backend is run by pip.
    :raises AptError: with pip's reason.
    """
    done = pip("wheel", *_QUIET, "--no-deps", "--wheel-dir", str(directory), "--", requirement)
    if done.returncode != 0:
        raise failure(done.stderr, "find", [requirement])
    made = list(directory.glob("*.whl"))
    if len(made) != 1:
        raise AptError(f"pip made no wheel of {requirement}")
    return made[0]


def uninstall(name: str) -> None:
    """Uninstall one distribution.

    :raises AptError: with pip's reason.
    """
    done = pip("uninstall", *_QUIET, "--yes", "--", name)
    if done.returncode != 0:
        raise failure(done.stderr, "uninstall", [name])


def published(pins: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the wheels that the configured index offers for pins, by pin; nothing is installed.

    Pins that it does not have, has as source only, or that lie on this computer's disk are left out.

    :raises NetworkError: when the index could not be reached.
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.json")
        arguments = ["install", *_QUIET, "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:"]
        done = pip(*arguments, "--retries", "1", "--report", str(report), "--", *pins)
        if done.returncode != 0:
            problem = failure(done.stderr, "find", pins)
            if isinstance(problem, NetworkError):
                raise problem
            # One that is not there fails them all: ask for each by itself.
            return {} if len(pins) < 2 else {k: v for pin in pins for k, v in published([pin]).items()}
        found = {}
        for entry in _entries(report):
            source = entry.get("download_info", {})
            sha256 = source.get("archive_info", {}).get("hashes", {}).get("sha256", "")
            if str(source.get("url", "")).startswith(("http://", "https://")) and sha256:
                found[f"{entry['metadata']['name']}=={entry['metadata']['version']}"] = str(sha256)
        return {p: found[k] for p in pins for k in found if _same_pin(p, k)}


def _same_pin(one: str, other: str) -> bool:
    def parts(pin: str) -> tuple[str, str]:
        name, _, version = pin.partition("==")
        return re.sub(r"[-_.]+", "-", name).lower(), version

    return parts(one) == parts(other)


def download(pins: dict[str, str], directory: Path) -> None:
    """Fetch wheels from the index into a directory; each must have its SHA-256.

    :param pins: SHA-256 by ``name==version``.
    :raises AptError: with pip's reason.
    """
    requirements = _hashed(pins, directory / "download.txt")
    arguments = ["download", *_QUIET, "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    done = pip(*arguments, "--dest", str(directory), "--requirement", str(requirements))
    if done.returncode != 0:
        raise failure(done.stderr, "fetch", list(pins))


def install_exactly(pins: dict[str, str], directory: Path, *, over_remains: bool = False) -> None:
    """Install wheels that lie in a directory, each with its SHA-256, and nothing else; what is installed is replaced.

    :param over_remains: also over what an interrupted installation left, which pip cannot uninstall.
    :raises AptError: with pip's reason.
    """
    requirements = _hashed(pins, directory / "install.txt")
    arguments = ["install", *_QUIET, "--no-deps", "--require-hashes", "--no-index", "--only-binary", ":all:"]
    arguments += ["--ignore-installed" if over_remains else "--force-reinstall", "--find-links", str(directory)]
    done = pip(*arguments, "--requirement", str(requirements))
    if done.returncode != 0:
        raise failure(done.stderr, "install", list(pins))


def _hashed(pins: dict[str, str], file: Path) -> Path:
    file.write_text("".join(f"{pin} --hash=sha256:{sha256}\n" for pin, sha256 in pins.items()), encoding="utf-8")
    return file


def _entries(report: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return entries


def failure(stderr: str, verb: str, requirements: Sequence[str]) -> AptError:
    """Return pip's failure as one line."""
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    hint = ""
    if "ResolutionImpossible" in stderr or "conflicting dependencies" in stderr:
        hint = f"it would replace {', '.join(held_versions())}; plugins must work with the installed versions"
    lines = stderr.strip().splitlines() or ["no reason given"]
    reason = errors[0] if errors and errors[0].strip() != "Exception:" else lines[-1]  # its last line is the exception
    message = f"pip could not {verb} {', '.join(requirements)}: {reason}"
    return NetworkError(message, hint=hint) if _NO_NETWORK.search(stderr) else AptError(message, hint=hint)
