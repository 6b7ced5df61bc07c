"""Packages that are to be installed, and whether the plugins that they bring could be used here."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from apt.console.errors import AptError, BadInputError, NotFoundError
from apt.plugins import build, distributions, intrusion, packages, wheels
from apt.plugins.dependencies import HELD
from apt.plugins.discovery import GROUP, Found
from apt.plugins.distributions import OWN, canonical
from apt.plugins.records import IndexData, PluginRecord
from apt.registry import CORE_COMPONENTS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin of a package that is not installed yet."""

    record: PluginRecord
    distribution: str


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was looked at; ``asked`` is what pip is given to install it: the very wheel that was looked at.

    :param came_from: what pip would note as its origin (PEP 610), had it fetched or built the wheel itself; empty for
        one of an index, ``None`` where the wheel is the user's and pip notes it.
    :param replaces: whether other files of the same version are installed, which pip would leave as they are.
    """

    name: str
    version: str
    asked: str
    came_from: dict[str, Any] | None
    replaces: bool
    candidates: list[Candidate]


def look(requirement: str, directory: Path, data: IndexData, others: Sequence[Candidate]) -> Package:
    """Fetch or build a package into a directory and look at what it brings.

    :param others: plugins of packages that are to be installed with it.
    :raises BadInputError: when it brings no plugin, or one that could not be used.
    :raises AptError: with pip's reason, when it cannot be had.
    """
    if not requirement or requirement.startswith("-"):
        raise BadInputError(f"{requirement!r} is neither a plugin nor a package")
    path = Path(requirement).absolute() if "://" not in requirement and Path(requirement).exists() else None
    if path is None and named(requirement) in (OWN, *HELD):
        raise BadInputError(f"{requirement} brings no plugin", hint="plugins work with the version that is installed")
    ready = path is not None and path.suffix == ".whl"
    # An absolute path: pip takes a bare word for the name of a package.
    file = path if ready and path else packages.wheel(str(path or requirement), directory)
    wheel = wheels.look(file)
    if not wheel.plugins:
        raise BadInputError(
            f"{requirement} brings no plugin: {wheel.name} {wheel.version} has no entry point in the group {GROUP}",
            hint="pip installs other packages",
        )
    if canonical(wheel.name) in (OWN, *HELD):
        raise BadInputError(f"{requirement} is {wheel.name}, which no plugin may replace")
    if reason := intrusion.fault(wheel):
        raise BadInputError(f"{requirement} is not installed: {reason}")
    found: list[Candidate] = []
    for plugin in wheel.plugins:
        record = _judged(plugin, wheel.name, data, [*others, *found])
        found.append(Candidate(record, wheel.name))
    local = path is not None or "://" in requirement
    dist = distributions.find(wheel.name)
    replaces = local and dist is not None and dist.version == wheel.version and not wheels.is_installed(file, dist)
    came_from = None if ready else _origin(requirement, path)
    return Package(wheel.name, wheel.version, _asked(requirement, wheel.name, file), came_from, replaces, found)


def _asked(requirement: str, name: str, file: Path) -> str:
    """Return what gives pip a wheel, with the extras that the requirement asks for."""
    extras = re.match(r"\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])", requirement)
    return f"{name}{extras[1]} @ {file.absolute().as_uri()}" if extras else str(file)


def _origin(requirement: str, path: Path | None) -> dict[str, Any]:
    """Return what PEP 610 notes of a wheel that was built of a path or fetched from an address; nothing of an index."""
    if path is not None:
        return {"url": path.as_uri(), **({"dir_info": {}} if path.is_dir() else {"archive_info": {}})}
    if "://" not in requirement:
        return {}
    address = re.sub(r"^\s*[\w.-]+\s*(\[[^\]]*\])?\s*@\s*", "", requirement).partition(" ;")[0].strip()
    return {"url": address, "archive_info": {}}


def named(requirement: str) -> str:
    """Return the canonical name of the distribution that a requirement names; ``""`` for a path or an address."""
    match = re.match(
        r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\]\s*)?(?=$|[<>=!~;@(\s])", requirement
    )
    return canonical(match[1]) if match else ""


def is_requirement_of_a_plugin(requirement: str, data: IndexData) -> bool:
    """Whether a plugin that is here names a distribution of that name among its requirements."""
    name = named(requirement)
    wanted = chain.from_iterable((*p.required_dependencies, *p.optional_dependencies) for p in data.plugins)
    return bool(name) and name not in HELD and name in map(named, wanted)


def _judged(found: Found, distribution: str, data: IndexData, others: Sequence[Candidate]) -> PluginRecord:
    """Return the record of a plugin that could be used beside what is here and what comes with it.

    :raises BadInputError: with the reason, when it could not.
    """
    facts = build.facts_of(found)
    record = build.record_of(found, facts)
    try:
        if found.fault:
            raise BadInputError(found.fault)
        build.check(record, facts)
    except AptError as error:
        raise BadInputError(f"the plugin {record.name} of {distribution} is not installed: {error}") from None
    replaced = {p.name for p in data.plugins if p.distribution and canonical(p.distribution) == canonical(distribution)}
    taken = _taken(record, data, replaced) or _taken_by_another(record, others)
    if taken:
        raise BadInputError(f"the plugin {record.name} of {distribution} is not installed: {taken}")
    return dataclasses.replace(record, location=f"distribution {distribution}", root="")


def _taken(record: PluginRecord, data: IndexData, replaced: set[str]) -> str:
    """Return which plugin here has the name, a command or a component of a new one; ``""`` when none has.

    :param replaced: names of the plugins whose place it takes.
    """
    for plugin in data.plugins:
        if plugin.name == record.name and plugin.name not in replaced:
            return f"its name belongs to the {plugin.source} plugin in {plugin.location}"
    for command in data.commands:
        if command.name in record.commands and command.plugin not in replaced:
            return f"its command {command.name!r} belongs to {command.plugin or 'apt_model itself'}"
    here = [(c.kind, c.name, "") for c in CORE_COMPONENTS] + [(c.kind, c.name, c.plugin) for c in data.components]
    for kind, name, owner in here:
        if f"{kind} {name}" in record.components and owner not in replaced:
            return f"its {kind} {name!r} belongs to {owner or 'apt_model itself'}"
    return ""


def _taken_by_another(record: PluginRecord, others: Sequence[Candidate]) -> str:
    for other in (c.record for c in others):
        if other.name == record.name:
            return "another of the packages brings a plugin of that name"
        for what, mine, theirs in (
            ("command", record.commands, other.commands),
            ("component", record.components, other.components),
        ):
            if both := set(mine) & set(theirs):
                return f"its {what} {min(both)!r} belongs to {other.name}"
    return ""


def check_conflicts(coming: Sequence[Candidate], data: IndexData) -> None:
    """Refuse plugins that conflict with one another or with a plugin that is used here, whoever of the two says so.

    :raises BadInputError: naming both.
    """
    new = [c.record for c in coming]
    here = [p for p in data.plugins if p.usable and p.name not in {r.name for r in new}]
    for record in new:
        for other in (*here, *new):
            if other is record:
                continue
            if other.name in record.conflicts or record.name in other.conflicts:
                hint = f"apt_model plugin disable {other.name}" if other in here else "install one of them"
                raise BadInputError(f"the plugin {record.name} conflicts with the plugin {other.name}", hint=hint)


def absent(asker: str, wanted: str) -> NotFoundError:
    """Return the error for a plugin that is required and of which nobody knows which package brings it."""
    return NotFoundError(
        f"the plugin {asker} requires the plugin {wanted}, which is not installed",
        hint="name the package that brings it too, or give an index that knows it (--index)",
    )
