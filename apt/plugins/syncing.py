"""``plugin sync``: the set of plugins that a lock file names, restored. Everything is verified before anything changes.

A run that was interrupted is run again: what is there already stays, what is half there is replaced.
"""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from apt.checkpoint.atomic import atomic_directory, atomic_file
from apt.console.errors import AptError, BadInputError, MissingDependencyError, NotFoundError
from apt.console.table import Table
from apt.plugins import build, distributions, host, index, lockfile, packages, uninstalling, wheels
from apt.plugins.dependencies import installed_version
from apt.plugins.distributions import canonical
from apt.plugins.lockfile import Lock, LockedDropin, LockedPackage
from apt.plugins.locking import dropin
from apt.plugins.records import PluginRecord
from apt_model import __version__


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result of ``plugin sync``.

    :param installed: packages (``name==version``) and drop-ins that were (or, in a dry run, would be) put in place.
    :param removed: plugins that the lock does not name, with ``exact``; ``extra``: those that stay without it.
    :param kept: where drop-ins that were replaced or removed lie now.
    :param differences: what is not as the lock says at the end; empty when the set is the same.
    """

    file: str
    installed: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    extra: tuple[str, ...]
    kept: tuple[str, ...]
    disabled: tuple[str, ...]
    differences: tuple[str, ...]
    dry_run: bool

    @property
    def same(self) -> bool:
        """Whether the set is the one of the lock."""
        return self.dry_run or not self.differences

    def tables(self) -> list[Table]:
        """Show what changed and whether the set is the same now."""
        would = "would be " if self.dry_run else ""
        rows = [
            (f"{would}installed", ", ".join(self.installed) or "-"),
            ("unchanged", ", ".join(self.unchanged) or "-"),
            (f"{would}removed", ", ".join(self.removed) or "-"),
            ("not in the lock", ", ".join(self.extra) or "-"),
            ("disabled", ", ".join(self.disabled) or "-"),
        ]
        rows += [("was replaced, lies in", path) for path in self.kept]
        if not self.dry_run:
            rows.append(("the set", "; ".join(self.differences) or "is the one of the lock"))
        return [Table("", ("what", "plugins and packages"), rows)]


def sync(file: Path, *, exact: bool = False, dry_run: bool = False) -> SyncResult:
    """Install the plugins that a lock file names.

    :param exact: remove foreign plugins that it does not name; drop-ins are moved aside.
    :raises BadInputError: for a lock file or a wheel that is not what it says it is.
    :raises MissingDependencyError: when the environment is not the one that the set needs.
    :raises AptError: with pip's reason. In all these cases but the last nothing has changed.
    """
    lock = lockfile.read(file)
    check_environment(lock)
    built_in = {p.name for p in host.load().plugins if not p.foreign}
    if claimed := built_in & set(lock.plugins):
        raise BadInputError(f"{file}: the plugin {min(claimed)} is part of apt_model, and no lock holds it")
    with TemporaryDirectory() as directory:
        stage = Path(directory)
        staged = _stage(lock, lockfile.wheels_directory(file), stage)
        changed = [p for p in lock.packages if not _package_is_there(p, staged[p.name])]
        new = [d for d in lock.dropins if not _dropin_is_there(d)]
        extra = _extra(lock)
        disabled = _disabled(lock, exact=exact)
        for record in extra if exact else ():
            uninstalling.check_owner(record)
        kept: list[str] = []
        if not dry_run:
            _install(changed, stage)
            kept += [place for d in new if (place := _write(d))]
            if exact and extra:
                removed = uninstalling.remove(extra, host.load()).removed
                kept += [r.kept_in for r in removed if r.kept_in]
            if disabled != set(build.disabled_plugins()):
                build.set_disabled(sorted(disabled))
            host.refresh()
        differences = () if dry_run else tuple(_differences(lock, staged, disabled, exact=exact))
    names = [*(p.pin for p in changed), *(d.name for d in new)]
    everything = [*(p.pin for p in lock.packages), *(d.name for d in lock.dropins)]
    others = tuple(p.name for p in extra)
    return SyncResult(
        str(file), tuple(names), tuple(n for n in everything if n not in names), others if exact else (),
        () if exact else others, tuple(kept), tuple(sorted(disabled)), differences, dry_run,
    )  # fmt: skip


def check_environment(lock: Lock) -> None:
    """Hold the environment against what the set needs.

    :raises MissingDependencyError: naming all that does not fit.
    """
    from packaging.specifiers import SpecifierSet

    have = {"python": platform.python_version(), "apt_model": __version__}
    unmet = []
    for name, text in lock.environment.items():
        version = have.get(name) or installed_version(name)
        if version is None or not SpecifierSet(text).contains(version, prereleases=True):
            unmet.append(f"{name}{text} ({f'here {version}' if version else 'not installed'})")
    if unmet:
        raise MissingDependencyError(
            f"the lock was made for another environment: it needs {', '.join(unmet)}",
            hint="install these, or relax environment in the lock file when the plugins work with what is here",
        )


def _stage(lock: Lock, folder: Path, stage: Path) -> dict[str, Path]:
    """Bring the wheels of all packages into a directory of our own, verified; return them by package.

    :raises BadInputError: when a wheel is not the one that was locked.
    """
    staged = {}
    for package in lock.packages:
        if package.wheel:
            staged[package.name] = _copy(package, folder / package.wheel, stage)
    wanted = {p.pin: p.sha256 for p in lock.packages if not p.wheel}
    if wanted:
        packages.download(wanted, stage)
    for package in lock.packages:
        if not package.wheel:
            staged[package.name] = _downloaded(package, stage)
    for package in lock.packages:
        wheel = wheels.look(staged[package.name])
        if (canonical(wheel.name), wheel.version) != (canonical(package.name), package.version):
            raise BadInputError(f"the wheel of {package.pin} is one of {wheel.name} {wheel.version}")
    return staged


def _copy(package: LockedPackage, wheel: Path, stage: Path) -> Path:
    target = stage / wheel.name
    try:
        shutil.copyfile(wheel, target)
    except (FileNotFoundError, IsADirectoryError, shutil.SpecialFileError):
        hint = "copy the directory of wheels along with the lock file"
        raise NotFoundError(f"the wheel of {package.pin} is not there: {wheel}", hint=hint) from None
    if distributions.hexadecimal(target) != package.sha256:
        raise BadInputError(f"{wheel} is not the wheel that was locked: its sha256 differs")
    return target


def _downloaded(package: LockedPackage, stage: Path) -> Path:
    for file in stage.glob("*.whl"):
        if canonical(file.name.split("-")[0]) == canonical(package.name):
            return file
    raise AptError(f"pip fetched no wheel of {package.pin}")


def _package_is_there(package: LockedPackage, wheel: Path) -> bool:
    dist = distributions.find(package.name)
    if dist is None or dist.version != package.version or distributions.origin(dist) == "editable":
        return False
    return dist.read_text("RECORD") is not None and wheels.is_installed(wheel, dist)


def _dropin_is_there(locked: LockedDropin) -> bool:
    place = _place(locked)
    try:
        return (place.is_file() or place.is_dir()) and dropin(place, ()).sha256 == locked.sha256
    except AptError:  # others could have written it: it is written anew
        return False


def _place(locked: LockedDropin) -> Path:
    return Path(index.plugin_directory(), locked.name)


def _extra(lock: Lock) -> list[PluginRecord]:
    """Return the foreign plugins here that the lock does not name."""
    names = {canonical(p.name) for p in lock.packages}
    places = {_place(d) for d in lock.dropins}
    return [
        p
        for p in host.load().plugins
        if p.foreign and (canonical(p.distribution) not in names if p.distribution else Path(p.root) not in places)
    ]


def _disabled(lock: Lock, *, exact: bool) -> set[str]:
    """Return which plugins are to be disabled: of the lock's as it says, of the others and of ours as they are."""
    foreign = {p.name for p in host.load().plugins if p.foreign}
    others = set(build.disabled_plugins()) - set(lock.plugins)
    return set(lock.disabled) | (others - foreign if exact else others)


def _install(changed: Sequence[LockedPackage], stage: Path) -> None:
    """Install wheels from the stage; over the remains of an installation that was interrupted, too."""
    remains: list[LockedPackage] = []
    others: list[LockedPackage] = []
    for package in changed:
        dist = distributions.find(package.name)
        broken = dist is not None and dist.read_text("RECORD") is None
        (remains if broken else others).append(package)
    for chosen, over_remains in ((others, False), (remains, True)):
        if chosen:
            packages.install_exactly({p.pin: p.sha256 for p in chosen}, stage, over_remains=over_remains)


def _write(locked: LockedDropin) -> str:
    """Put a drop-in in place; return where the one that it replaces lies now, ``""`` for none."""
    place = _place(locked)
    kept = ""
    if place.exists() or place.is_symlink():
        kept = str(uninstalling.keep_copy(locked.plugins[0] if locked.plugins else place.stem, place))
    if place.is_symlink() or (place.exists() and place.is_dir() == locked.name.endswith(".py")):
        place.unlink() if not place.is_dir() or place.is_symlink() else shutil.rmtree(place)
    if locked.name.endswith(".py"):
        with atomic_file(place, overwrite=True) as stream:
            stream.write(locked.files[0].content)
        return kept
    with atomic_directory(place, overwrite=True) as aside:
        for file in locked.files:
            target = Path(aside, *file.path.split("/")[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
    return kept


def _differences(lock: Lock, staged: dict[str, Path], disabled: set[str], *, exact: bool) -> list[str]:
    """Compare what is here now with the lock."""
    found = [
        f"{p.pin} is not installed as it was locked" for p in lock.packages if not _package_is_there(p, staged[p.name])
    ]
    found += [f"{d.name} is not what was locked" for d in lock.dropins if not _dropin_is_there(d)]
    if exact:
        found += [f"{p.name} is still there" for p in _extra(lock)]
    here = {p.name for p in host.load().plugins}
    found += [f"the plugin {name} is not found" for name in lock.plugins if name not in here and "@" not in name]
    if set(build.disabled_plugins()) != disabled:
        found.append("the list of disabled plugins is another")
    return found
