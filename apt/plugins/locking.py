"""``plugin lock``: the foreign plugins that are installed, pinned so that ``plugin sync`` restores them elsewhere."""

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from apt.checkpoint.atomic import atomic_directory, atomic_file
from apt.console import output
from apt.console.errors import BadInputError, NetworkError
from apt.console.table import Table
from apt.plugins import build, distributions, host, index, ownership, packages, uninstalling, wheels
from apt.plugins.dependencies import HELD, installed_version
from apt.plugins.distributions import canonical
from apt.plugins.lockfile import (
    DROPIN,
    LARGEST_DROPIN,
    MOST_FILES,
    Lock,
    LockedDropin,
    LockedFile,
    LockedPackage,
    is_code,
    parse,
    render,
    wheels_directory,
)  # fmt: skip
from apt.plugins.records import PluginRecord
from apt.plugins.repack import repack
from apt_model import __version__


@dataclass(frozen=True, slots=True)
class LockResult:
    """The result of ``plugin lock``.

    :param indexed: packages that a package index has, ``packed`` those whose wheels lie in ``wheels``.
    :param wheels: ``""`` when no wheel had to be packed.
    """

    file: str
    wheels: str
    plugins: tuple[str, ...]
    indexed: tuple[str, ...]
    packed: tuple[str, ...]
    dropins: tuple[str, ...]
    disabled: tuple[str, ...]
    environment: dict[str, str]

    def tables(self) -> list[Table]:
        """Show what was written."""
        rows = [
            ("written", ", ".join(filter(None, (self.file, self.wheels)))),
            ("plugins", ", ".join(self.plugins) or "-"),
            ("from the index", ", ".join(self.indexed) or "-"),
            ("packed beside it", ", ".join(self.packed) or "-"),
            ("drop-ins", ", ".join(self.dropins) or "-"),
            ("disabled", ", ".join(self.disabled) or "-"),
            ("needs", ", ".join(f"{name}{spec}" for name, spec in self.environment.items())),
        ]
        return [Table("", ("what", "locked"), rows)]


def lock(file: Path, *, overwrite: bool = False) -> LockResult:
    """Write the set of foreign plugins that are installed to a lock file, and the wheels that no index has beside it.

    :raises TargetExistsError: when the file exists and ``overwrite`` is false.
    :raises UnsupportedError: when a plugin is an editable installation.
    :raises BadInputError: when files of a plugin are not those that were installed, or are not the user's own, or when
        nobody can tell what brings it.
    :raises CannotWriteError: when the place cannot be written; then nothing is.
    """
    plugins = [p for p in host.load().plugins if p.foreign]
    for plugin in plugins:
        uninstalling.check_owner(plugin)
    dropins = (*(dropin(Path(p.root), (p.name,)) for p in plugins if p.source == "drop-in"), *_helpers(plugins))
    disabled = tuple(n for n in build.disabled_plugins() if n in {p.name for p in plugins})
    with TemporaryDirectory() as directory, atomic_file(file, overwrite=overwrite) as stream:
        folder = wheels_directory(file)
        locked = packages_of(plugins, Path(directory))
        written = Lock(environment(), locked, dropins, disabled)
        text = render(written).encode()
        parse(text)  # what is written can be read
        stream.write(text)
        stream.flush()  # a full disk is found before the wheels are put in place
        if any(p.wheel for p in locked):
            with atomic_directory(folder, overwrite=overwrite) as aside:
                for package in locked:
                    if package.wheel:
                        (aside / package.wheel).write_bytes(Path(directory, package.wheel).read_bytes())
    packed = tuple(p.pin for p in locked if p.wheel)
    return LockResult(
        str(file), str(folder) if packed else "", tuple(p.name for p in plugins),
        tuple(p.pin for p in locked if not p.wheel), packed, tuple(d.name for d in dropins), written.disabled,
        written.environment,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Return what the set was used with, as version specifiers; a local version (``+cpu``) does not count."""
    major, minor, _ = platform.python_version_tuple()
    found = {"python": f"=={major}.{minor}.*", "apt_model": f"=={__version__}"}
    for name in HELD:
        if version := installed_version(name):
            found[name] = f"=={version.partition('+')[0]}"
    return found


def needed_by(plugins: Iterable[PluginRecord]) -> dict[str, Distribution]:
    """Return the distributions of plugins and what those need beyond apt_model itself, by canonical name.

    :raises BadInputError: for a name that is no distribution's.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    wanted = []
    for plugin in plugins:
        try:
            own = [plugin.distribution] if plugin.distribution else []
            wanted += [Requirement(r) for r in (*own, *plugin.required_dependencies)]
        except InvalidRequirement as error:
            raise BadInputError(f"plugin {plugin.name}: {str(error).splitlines()[0]}") from None
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = distributions.closure(r for r in wanted if canonical(r.name) not in distributions.core())
    return {name: dist for name, dist in found.items() if name not in distributions.core()}


def packages_of(plugins: Iterable[PluginRecord], directory: Path) -> tuple[LockedPackage, ...]:
    """Pin the distributions that plugins need; the wheels of those that no index has are packed into a directory."""
    known = list(plugins)
    found = needed_by(known)
    published = _published([d for d in found.values() if distributions.origin(d) == "index"])
    locked = []
    for name, dist in sorted(found.items()):
        brought = tuple(sorted(p.name for p in known if canonical(p.distribution) == name))
        if sha256 := published.get(f"{name}=={dist.version}"):
            locked.append(LockedPackage(name, dist.version, sha256, "", brought))
        else:
            wheel = repack(dist, directory)
            locked.append(LockedPackage(name, dist.version, distributions.hexadecimal(wheel), wheel.name, brought))
    return tuple(locked)


def _published(found: list[Distribution]) -> dict[str, str]:
    """Return the SHA-256 of those wheels of the index that hold what is installed, by ``name==version``.

    The index may have another file under the same name and version: a stranger's, or another build.
    """
    pins = {f"{canonical(d.name)}=={d.version}": d for d in found}
    if not pins or not packages.available():
        return {}
    try:
        offered = packages.published(list(pins))
    except NetworkError as error:
        output.note(f"{error.message}; packages are packed beside the lock file instead")
        return {}
    held = {}
    with TemporaryDirectory() as directory:
        if offered:
            packages.download(offered, Path(directory))
        for file in Path(directory).glob("*.whl"):
            name, version, *_ = file.name.split("-")
            pin = f"{canonical(name)}=={version}"
            if pin in pins and wheels.is_installed(file, pins[pin]):
                held[pin] = offered[pin]
    return held


def _helpers(plugins: Iterable[PluginRecord]) -> Iterator[LockedDropin]:
    """Yield what drop-ins may import beside them: modules whose names begin with an underscore."""
    if not any(p.source == "drop-in" for p in plugins):
        return
    for entry in sorted(Path(index.plugin_directory()).iterdir()):
        module = entry.suffix == ".py" if entry.is_file() else entry.is_dir() and bool(_files(entry))
        if entry.name.startswith("_") and module and is_code(entry.name) and DROPIN.fullmatch(entry.name):
            yield dropin(entry, ())


def dropin(root: Path, plugins: tuple[str, ...]) -> LockedDropin:
    """Return a file or directory of the plugin directory with its content.

    :param plugins: that it brings; none of one that only others import.
    :raises BadInputError: when others could have written it, or it is too large.
    """
    name = plugins[0] if plugins else root.name
    if reason := ownership.fault(root):
        raise BadInputError(f"plugin {name} is not locked: {reason}")
    files = tuple(LockedFile(path.relative_to(root.parent).as_posix(), path.read_bytes()) for path in _files(root))
    if len(files) > MOST_FILES or sum(len(f.content) for f in files) > LARGEST_DROPIN:
        hint = "make it a package: apt_model plugin new"
        raise BadInputError(f"plugin {name} is too large to be locked as a drop-in: {root}", hint=hint)
    return LockedDropin(root.name, plugins, files)


def _files(root: Path) -> list[Path]:
    """Return the files of a drop-in; hidden ones, bytecode and links to directories are left out."""
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or not is_code(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            found += _files(entry)
        elif entry.is_file():
            found.append(entry)
    return found[: MOST_FILES + 1]
