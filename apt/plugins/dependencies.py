"""Declared requirements: which of them the environment lacks."""

import importlib.metadata
import re
from collections.abc import Iterable
from typing import Final

from apt.console.errors import BadInputError
from apt.plugins import index

#: No plugin may replace these: models, kernels and this package are tested with the versions that are installed.
HELD: Final = ("torch", "transformers", "numpy")

#: A name, and bounds of its release that are plain numbers.
_BOUND: Final = r"(?:>=|<) *\d+(?:\.\d+)*"
_PLAIN: Final = re.compile(rf"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?) *({_BOUND}(?: *, *{_BOUND})*)?")
_RELEASE: Final = re.compile(r"\d+(\.\d+)*(\+[a-z0-9.]+)?")
_DIRECTORY: Final = re.compile(r"[^-]+-([^-]+)\.dist-info")


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
    """Return the version of an installed distribution; what lies in the current directory was not installed."""
    try:
        found = next(iter(importlib.metadata.distributions(name=name, path=index.search_path())), None)
    except ValueError:
        return None
    if found is None:
        return None
    # The directory's name holds the version; parsing torch's metadata for it costs some ms.
    directory = getattr(getattr(found, "_path", None), "name", "")
    named = _DIRECTORY.fullmatch(directory)
    return named[1] if named is not None else found.version


def held_versions() -> list[str]:
    """Return ``name==version`` of the packages that no installation may replace."""
    found = ((name, installed_version(name)) for name in HELD)
    return [f"{name}=={version}" for name, version in found if version is not None]
