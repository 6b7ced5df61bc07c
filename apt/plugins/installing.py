"""``plugin install``: what plugins miss, and packages that bring plugins.

A foreign package is looked at before it is installed (:mod:`apt.plugins.wheels`), and refused when nothing of it could
be used here; afterwards its plugins are tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apt.console.errors import AptError, BadInputError, NotFoundError
from apt.console.table import Table
from apt.plugins import candidates, curated, dependencies, distributions, host, packages, trying
from apt.plugins.candidates import Candidate
from apt.plugins.core import PLANNED
from apt.plugins.records import IndexData, PluginRecord
from apt.plugins.trying import Trial


@dataclass(frozen=True, slots=True)
class Coming:
    """A plugin that an installation brings."""

    name: str
    version: str
    distribution: str
    commands: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class InstallResult:
    """What ``plugin install`` did.

    :param plugins: those here whose requirements were asked for; ``coming``: those that the packages bring.
    :param requirements: what was asked of pip; empty when nothing was missing.
    :param installed: ``name==version`` of the packages that were (or, in a dry run, would be) installed.
    :param held: the versions that were not to be replaced.
    :param trials: of the foreign plugins among them.
    """

    plugins: tuple[str, ...]
    coming: tuple[Coming, ...]
    requirements: tuple[str, ...]
    installed: tuple[str, ...]
    held: tuple[str, ...]
    trials: tuple[Trial, ...]
    dry_run: bool

    @property
    def passed(self) -> bool:
        """Whether no trial failed."""
        return not any(t.verdict == "failed" for t in self.trials)

    def tables(self) -> list[Table]:
        """Show the packages, or that there was nothing to do, and the plugins with their trials."""
        verb = "would be installed" if self.dry_run else "installed"
        rows = [
            ("plugins", ", ".join(self.plugins) or "-"),
            ("asked for", ", ".join(self.requirements) or "nothing: everything required is installed"),
            (verb, ", ".join(self.installed) or "-"),
            ("held", ", ".join(self.held) or "-"),
        ]
        shown = [Table("", ("what", "packages"), rows)]
        if self.coming:
            brought = [(c.name, c.version, ", ".join(c.commands), c.distribution, c.description) for c in self.coming]
            title = "would come" if self.dry_run else "new"
            shown.append(Table("", (f"{title}: plugin", "version", "command", "package", "description"), brought))
        return [*shown, *trying.tables(self.trials)]


def install(names: Sequence[str], *, optional: bool = False, dry_run: bool = False, index: str = "") -> InstallResult:
    """Install what plugins of these names miss, and packages that bring plugins.

    :param names: plugins by any of their names, names of a curated index, requirements, wheels, directories.
    :param optional: also what only adds something.
    :param index: path or address of a curated index; see :func:`apt.plugins.curated.offers`.
    :raises NotFoundError: for a name that is surely a plugin's, but of none that could be had.
    :raises BadInputError: for a package that brings no plugin, or one that could not be used.
    :raises AptError: with pip's reason, when it does not succeed. In all these cases nothing is installed, but where
        other files of an installed version are put in place: that comes last, and the error tells what was before.
    """
    with TemporaryDirectory() as directory:
        plan = _Plan(host.load(), curated.offers(index), Path(directory), optional)
        plan.resolve(names)
        held = tuple(dependencies.held_versions())
        coming = tuple(map(_coming, plan.coming))
        found = tuple(plan.plugins), coming, tuple(plan.requirements)
        if not plan.requirements:
            return InstallResult(*found, (), held, () if dry_run else _trials(plan), dry_run)
        installed = packages.install(plan.asked, pins=plan.pins, dry_run=dry_run)
        if not dry_run:
            _note(plan)
        if plan.replacing:
            installed += _replace(plan, installed, dry_run=dry_run)
    host.refresh()
    return InstallResult(*found, installed, held, () if dry_run else _trials(plan), dry_run)


def _replace(plan: "_Plan", installed: tuple[str, ...], *, dry_run: bool) -> tuple[str, ...]:
    """Put other files of installed versions in place.

    :raises AptError: with pip's reason, and with what is installed by then.
    """
    try:
        replaced = packages.install(plan.replacing, pins=plan.pins, replace=True, dry_run=dry_run)
    except AptError as error:
        host.refresh()
        if installed and not dry_run:
            message = f"{error.message}; installed before that: {', '.join(installed)}"
            raise type(error)(message, hint=error.hint) from None
        raise
    if not dry_run:
        _note(plan)
    return replaced


def _note(plan: "_Plan") -> None:
    """Note where packages came from: pip has noted wheels that lie in a directory of ours, which goes."""
    for name, came_from in plan.came_from.items():
        dist = distributions.find(name)
        if dist is not None and Path(distributions.address(dist)).is_relative_to(plan.directory):
            distributions.note_origin(dist, came_from)


def _coming(candidate: Candidate) -> Coming:
    record = candidate.record
    return Coming(record.name, record.version, candidate.distribution, record.commands, record.description)


def _trials(plan: "_Plan") -> tuple[Trial, ...]:
    """Try the foreign plugins of an installation that are to be used for the first time or failed before."""
    data = host.load()
    known = {p.name: p for p in data.plugins}
    new = [c.record.name for c in plan.coming]
    again = [n for n in plan.plugins if known[n].foreign and known[n].status in ("untried", "quarantined")]
    lost = tuple(
        Trial(n, "failed", "it is not found after its installation", mend=f"apt_model plugin doctor {n}")
        for n in new if n not in known
    )  # fmt: skip
    tried = trying.attempt(dict.fromkeys(n for n in (*new, *again) if n in known)).trials
    return (*tried, *lost)


@dataclass
class _Plan:
    """What an installation will ask of pip, worked out before anything is installed.

    :param requirements: as the user or a plugin wrote them; ``asked``: as pip is given them.
    :param pins: the versions that were looked at, ``name==version``.
    :param replacing: files whose version is installed with another content.
    :param came_from: what is noted as the origin of packages whose wheels lie in ``directory``.
    """

    data: IndexData
    offers: tuple[curated.Offer, ...]
    directory: Path
    optional: bool
    plugins: list[str] = field(default_factory=list)
    requirements: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    replacing: list[str] = field(default_factory=list)
    came_from: dict[str, dict[str, Any]] = field(default_factory=dict)
    coming: list[Candidate] = field(default_factory=list)

    def resolve(self, names: Sequence[str]) -> None:
        """Work out everything that the names stand for, and what that needs in turn."""
        for name in dict.fromkeys(names):
            record = known(name, self.data, self.offers)
            if record is not None:
                self._complete(record)
            else:
                self._take(name)
        waiting = [(c.record.name, n) for c in self.coming for n in c.record.requires]
        waiting += [(p, n) for p in self.plugins for n in self.data.plugin(p).requires]
        seen: set[str] = set()
        while waiting:
            asker, wanted = waiting.pop(0)
            if wanted not in seen:
                seen.add(wanted)
                waiting += [(wanted, n) for n in self._need(asker, wanted)]
        candidates.check_conflicts(self.coming, self.data)

    def _complete(self, record: PluginRecord) -> None:
        """Take up the requirements of a plugin that is here."""
        if record.name in self.plugins:
            return
        self.plugins.append(record.name)
        wanted = [*record.required_dependencies, *(record.optional_dependencies if self.optional else ())]
        for requirement in dependencies.missing(wanted):
            self._ask(requirement, requirement)

    def _ask(self, requirement: str, asked: str) -> None:
        if requirement not in self.requirements:
            self.requirements.append(requirement)
            self.asked.append(asked)

    def _take(self, name: str) -> list[Candidate]:
        """Take up a package that is not installed yet, by the name of a plugin in the index or as pip knows it.

        It is looked at first.
        """
        offered = next((o.requirement for o in self.offers if o.name == name), None)
        requirement = offered or name
        if candidates.is_requirement_of_a_plugin(requirement, self.data):
            self._ask(requirement, requirement)
            return []
        folder = self.directory / str(len(self.pins))
        folder.mkdir()
        package = candidates.look(requirement, folder, self.data, self.coming)
        if offered and name not in (c.record.name for c in package.candidates):
            raise BadInputError(f"{requirement} does not bring the plugin {name}, whatever the index says")
        if self.optional:
            for candidate in package.candidates:
                for wanted in dependencies.missing(candidate.record.optional_dependencies):
                    self._ask(wanted, wanted)
        for candidate in package.candidates:
            for wanted in dependencies.missing(candidate.record.required_dependencies):
                self._ask(wanted, wanted)
        self._ask(requirement, package.asked)
        self.pins.append(f"{package.name}=={package.version}")
        if package.came_from is not None:
            self.came_from[package.name] = package.came_from
        self.replacing += [package.asked] if package.replaces else []
        self.coming += package.candidates
        return package.candidates

    def _need(self, asker: str, wanted: str) -> tuple[str, ...]:
        """See to it that a plugin that another one requires will be usable; return what that one requires."""
        if any(c.record.name == wanted for c in self.coming):
            return ()
        record = next((p for p in self.data.plugins if p.name == wanted), None)
        if record is not None:
            if record.status == "incomplete":
                self._complete(record)
                return record.requires
            if not record.usable:
                reason = f"the plugin {asker} requires {wanted}, which is not usable: {record.reason}"
                raise AptError(reason, hint=f"mend it with: {record.mend}")
            return ()
        if not any(offer.name == wanted for offer in self.offers):
            raise candidates.absent(asker, wanted)
        return tuple(n for c in self._take(wanted) for n in c.record.requires)


def known(name: str, data: IndexData, offers: Sequence[curated.Offer] = ()) -> PluginRecord | None:
    """Return the plugin of that name; ``None`` for what is left to a curated index or to pip.

    :raises NotFoundError: for a name that was surely meant to be a plugin's: pip would fetch a stranger's package.
    """
    try:
        return data.plugin(name)
    except NotFoundError as error:
        word = name.replace("_", "-").lower()
        if any(offer.name == name for offer in offers):
            return None
        for planned, others in PLANNED.items():
            if word in (planned, *others):
                raise NotFoundError(f"the plugin {planned} is not part of this version") from None
        asker = next((p.name for p in data.plugins if name in p.requires), None)
        if asker is not None:
            raise candidates.absent(asker, name) from None
        if error.hint.startswith("did you mean") and not Path(name).exists():
            hint = f"{error.hint} For a package of that name write {name}>=0"
            raise NotFoundError(error.message, hint=hint) from None
        return None
