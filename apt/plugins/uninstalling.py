"""``plugin uninstall``: drop-ins are moved aside, distributions are uninstalled by pip. No plugin is imported."""

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apt.console import output
from apt.console.errors import AptError, BadInputError, CannotWriteError, UsageError
from apt.console.table import Table
from apt.plugins import build, distributions, host, index, packages, verdicts
from apt.plugins.distributions import canonical
from apt.plugins.records import IndexData, PluginRecord


@dataclass(frozen=True, slots=True)
class Removed:
    """A plugin that was (or, in a dry run, would be) removed.

    :param distribution: that pip uninstalled with all its plugins; ``""`` for a drop-in.
    :param kept_in: where a drop-in lies now; ``restore``: the command that puts it back or installs it again.
    """

    plugin: str
    source: str
    distribution: str
    location: str
    kept_in: str
    restore: str


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A plugin that requires a removed one."""

    plugin: str
    requires: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UninstallResult:
    """The result of ``plugin uninstall``."""

    removed: tuple[Removed, ...]
    incomplete: tuple[Incomplete, ...]
    dry_run: bool

    def tables(self) -> list[Table]:
        """Show what is gone, where drop-ins lie now, and what becomes incomplete."""
        verb = "would be removed" if self.dry_run else "removed"
        rows = [(r.plugin, r.distribution or r.location, r.restore) for r in self.removed]
        shown = [Table("", (f"{verb}: plugin", "package or file", "put it back with"), rows)]
        if self.incomplete:
            lines = [(i.plugin, ", ".join(i.requires)) for i in self.incomplete]
            shown.append(Table("", ("becomes incomplete: plugin", "it requires"), lines))
        return shown


def uninstall(names: Sequence[str], *, dry_run: bool = False) -> UninstallResult:
    """Remove plugins, by any of their names; broken and quarantined ones, too.

    :raises NotFoundError: for a name that is no plugin's.
    :raises UsageError: for a built-in one.
    :raises BadInputError: for one of which nobody can tell what brings it. In these cases nothing is removed.
    :raises AptError: with pip's reason, when a distribution cannot be uninstalled.
    """
    data = host.load()
    chosen = {record.name: record for record in map(data.plugin, names)}
    for record in chosen.values():
        _check(record)
    return remove(chosen.values(), data, dry_run=dry_run)


def _check(record: PluginRecord) -> None:
    if not record.foreign:
        hint = f"apt_model plugin disable {record.name}"
        raise UsageError(f"the plugin {record.name} is part of apt_model and cannot be uninstalled", hint=hint)
    if canonical(record.distribution) == distributions.OWN:
        raise UsageError(f"the plugin {record.name} is brought by apt_model's own distribution")


def check_owner(record: PluginRecord) -> None:
    """Refuse a foreign plugin that neither pip knows by its name nor lies in the plugin directory.

    :raises BadInputError: naming where it is.
    """
    own = record.source == "drop-in" and Path(record.root).parent == Path(index.plugin_directory())
    if not own and not record.distribution:
        raise BadInputError(
            f"{record.location} does not say which package brings the plugin {record.name}: its METADATA is missing, "
            "damaged or another's",
            hint="remove that directory, and install the package anew",
        )


def remove(records: Iterable[PluginRecord], data: IndexData, *, dry_run: bool = False) -> UninstallResult:
    """Remove foreign plugins, with their verdicts and their place in the list of disabled ones.

    :param data: the index that holds them; what becomes incomplete is told by it.
    :raises BadInputError: for one of which nobody can tell what brings it; then nothing is removed.
    """
    chosen = list(records)
    for record in chosen:
        check_owner(record)
    brought_by = {canonical(r.distribution) for r in chosen if r.distribution}
    going = [p for p in data.plugins if p in chosen or (p.distribution and canonical(p.distribution) in brought_by)]
    by_pip = {r.name: _by_pip(r) for r in going if r.distribution}  # asked while it is still there
    removed: list[Removed] = []
    gone: set[str] = set()
    for record in going:
        name = canonical(record.distribution)
        if record.distribution and name not in gone and not dry_run:
            _uninstall(record.distribution)
        gone.add(name)
        removed.append(by_pip.get(record.name) or _move_aside(record, dry_run=dry_run))
        if not dry_run:
            verdicts.forget(verdicts.sealed_path(record))
    if not dry_run:
        _forget_disabled({r.name for r in going})
        host.refresh()
    names = {r.name for r in going}
    incomplete = tuple(
        Incomplete(p.name, tuple(n for n in p.requires if n in names))
        for p in data.plugins
        if p.name not in names and set(p.requires) & names
    )
    return UninstallResult(tuple(removed), incomplete, dry_run)


def _by_pip(record: PluginRecord) -> Removed:
    restore = restoring(record.distribution)
    return Removed(record.name, record.source, record.distribution, record.location, "", restore)


def restoring(name: str) -> str:
    """Return the command that installs a distribution again from where it came; ``""`` when that is not known."""
    import shlex

    dist = distributions.find(name)
    if dist is None:
        return ""
    source = distributions.address(dist)
    wanted = f"{dist.name}=={dist.version}" if distributions.origin(dist) == "index" else source
    return f"apt_model plugin install {shlex.quote(wanted)}" if wanted else ""


def _uninstall(name: str) -> None:
    """Uninstall a distribution and make sure that it is gone.

    :raises AptError: when it is not; pip ends without an error for one outside its environment.
    """
    packages.uninstall(name)
    left = distributions.find(name)
    if left is not None:
        raise AptError(
            f"pip did not uninstall {name} {left.version}: it is still in {left.locate_file('')}",
            hint="it belongs to another environment, or is there twice; remove it there",
        )


def _move_aside(record: PluginRecord, *, dry_run: bool) -> Removed:
    """Move a drop-in out of the plugin directory, to where it can be fetched back from."""
    import shlex

    root = Path(record.root)
    place = _aside(record.name)
    kept = place / root.name
    if not dry_run:
        place.mkdir(parents=True)
        try:
            shutil.move(root, kept)  # a rename where both lie on one disk
        except BaseException:
            if not any(place.iterdir()):
                place.rmdir()
            raise
    restore = f"mv {shlex.quote(str(kept))} {shlex.quote(str(root))}"
    return Removed(record.name, record.source, "", record.root, str(kept), restore)


def _aside(name: str) -> Path:
    """Return a directory that does not exist, named by the plugin and the time."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    directory = Path(index.home(), "removed-plugins")
    path = directory / f"{name}-{stamp}"
    number = 1
    while path.exists():
        number += 1
        path = directory / f"{name}-{stamp}-{number}"
    return path


def keep_copy(name: str, root: Path) -> Path:
    """Copy a drop-in to where removed ones are kept, before another takes its place; return the copy."""
    place = _aside(name)
    place.mkdir(parents=True)
    kept = place / root.name
    if root.is_dir():
        shutil.copytree(root, kept, symlinks=True)
    else:
        shutil.copy2(root, kept)
    return kept


def _forget_disabled(names: set[str]) -> None:
    """Take plugins that are gone off the list of disabled ones; how to put them back is told whatever comes of it."""
    disabled = build.disabled_plugins()
    if names & set(disabled):
        try:
            build.set_disabled([n for n in disabled if n not in names])
        except CannotWriteError as error:
            output.warn(f"{', '.join(sorted(names & set(disabled)))} stay disabled: {error.message}")
