"""Declared requirements: which of them are missing, and installing them without replacing what the models need."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.console.errors import AptError, BadInputError, MissingDependencyError
from apt.console.table import Table

#: No plugin may replace these: models, kernels and this package are tested with the versions that are installed.
HELD: Final = ("torch", "transformers", "numpy")

#: A name, and bounds of its release that are plain numbers.
_BOUND: Final = r"(?:>=|<) *\d+(?:\.\d+)*"
_PLAIN: Final = re.compile(rf"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?) *({_BOUND}(?: *, *{_BOUND})*)?")
_RELEASE: Final = re.compile(r"\d+(\.\d+)*(\+[a-z0-9.]+)?")
_DIRECTORY: Final = re.compile(r"[^-]+-([^-]+)\.dist-info")


@dataclass(frozen=True, slots=True)
class InstallResult:
    """What ``plugin install`` did.

    :param requirements: what was asked of pip; empty when nothing was missing.
    :param installed: ``name==version`` of the packages that were (or, in a dry run, would be) installed.
    :param held: the versions that were not to be replaced.
    """

    plugins: tuple[str, ...]
    requirements: tuple[str, ...]
    installed: tuple[str, ...]
    held: tuple[str, ...]
    dry_run: bool

    def tables(self) -> list[Table]:
        """Show the packages, or that there was nothing to do."""
        verb = "would be installed" if self.dry_run else "installed"
        rows = [
            ("plugins", ", ".join(self.plugins) or "-"),
            ("asked for", ", ".join(self.requirements) or "nothing: everything required is installed"),
            (verb, ", ".join(self.installed) or "-"),
            ("held", ", ".join(self.held) or "-"),
        ]
        return [Table("", ("what", "packages"), rows)]


def missing(requirements: Iterable[str]) -> list[str]:
    """Return the requirements that the environment does not meet.

    :raises BadInputError: for a string that is not a requirement.
    """
    return [text for text in requirements if not _met(text)]


def _met(text: str) -> bool:
    plain = _PLAIN.fullmatch(text)
    if plain is not None:
        version = installed_version(plain[1])
        if version is None or not plain[2]:
            return version is not None
        if _RELEASE.fullmatch(version):  # packaging costs 15 ms, and nearly all requirements are of this form
            return _within(_numbers(version), plain[2])
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise BadInputError(f"bad requirement {text!r}: {str(error).splitlines()[0]}") from None
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _within(numbers: list[int], clauses: str) -> bool:
    for clause in clauses.replace(" ", "").split(","):
        bound = _numbers(clause.lstrip("<>="))
        if numbers < bound if clause.startswith(">=") else numbers >= bound:
            return False
    return True


def _numbers(version: str) -> list[int]:
    """Return the numbers of a release, without zeros at the end and a local version: 2.0 is 2, 2.13.0+cpu is 2.13."""
    numbers = [int(n) for n in version.partition("+")[0].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        found = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    # The directory's name holds the version; parsing torch's metadata for it costs some ms.
    directory = getattr(getattr(found, "_path", None), "name", "")
    named = _DIRECTORY.fullmatch(directory)
    return named[1] if named is not None else found.version


def held_versions() -> list[str]:
    """Return ``name==version`` of the packages that no installation may replace."""
    found = ((name, installed_version(name)) for name in HELD)
    return [f"{name}=={version}" for name, version in found if version is not None]


def install(plugins: Sequence[str], requirements: Sequence[str], *, dry_run: bool = False) -> InstallResult:
    """Install requirements by the pip of this interpreter.

    :raises AptError: with pip's reason, when it does not succeed; then nothing has changed.
    :raises MissingDependencyError: when this interpreter has no pip.
    """
    held = held_versions()
    if not requirements:
        return InstallResult(tuple(plugins), (), (), tuple(held), dry_run)
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError("this Python has no pip", hint=f"{sys.executable} -m ensurepip")
    with tempfile.TemporaryDirectory() as directory:
        constraint = Path(directory, "constraints.txt")
        constraint.write_text("".join(f"{line}\n" for line in held), encoding="utf-8")
        report = Path(directory, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--constraint", str(constraint), "--report", str(report)]
        command += [*(["--dry-run"] if dry_run else []), "--", *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise _pip_error(done.stderr, requirements, held)
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    names = sorted(f"{e['metadata']['name']}=={e['metadata']['version']}" for e in entries)
    return InstallResult(tuple(plugins), tuple(requirements), tuple(names), tuple(held), dry_run)


def _pip_error(stderr: str, requirements: Sequence[str], held: Sequence[str]) -> AptError:
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    wanted = ", ".join(requirements)
    hint = ""
    if "ResolutionImpossible" in stderr or "conflicting dependencies" in stderr:
        hint = f"it would replace {', '.join(held)}; plugins must work with the installed versions"
    reason = errors[0] if errors else (stderr.strip().splitlines() or ["no reason given"])[-1]
    return AptError(f"pip could not install {wanted}: {reason}", hint=hint)
