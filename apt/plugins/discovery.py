"""Finding plugins without importing them: built-in folders, entry points, files of the user's plugin directory.

What a plugin says of itself is read from its distribution's metadata, its ``plugin.toml`` and its source, so that one
that cannot be imported is still listed under its name, with its commands.
"""

import importlib.metadata
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apt.console.errors import AptError, first_line
from apt.plugins import index
from apt.plugins.completion_words import shown
from apt.plugins.distributions import address, canonical, name_of, origin
from apt.plugins.dropins import DROPINS
from apt.plugins.manifest import FILE, TARGET, read_manifest
from apt.plugins.source import read_source
from apt.plugins.verdicts import code_files

GROUP: Final = "apt_model.plugins"
_METADATA: Final = ("entry_points.txt", "METADATA")
_BUILTIN_SOURCES: Final = {"builtin": "built-in", "optional": "built-in, optional"}
#: Paths beyond which only one file of a plugin is watched, since every start looks at each (3 µs): its manifest, or the
#: module of one that has none, and the entry points of a distribution. Its other code is sealed all the same, so that
#: no change of it runs untried.
_WATCHED_PATHS: Final = 128


@dataclass(slots=True)
class Watch:
    """What the index depends on: the stamp of every path, taken before the path was read.

    :param optional: stamps of paths that are watched while there are few.
    :param rare: stamps of what brings no plugin and seldom comes to, watched while there are few with those.
    :param newest_ns: latest change of any of them.
    """

    stamps: dict[str, int] = field(default_factory=dict)
    optional: dict[str, int] = field(default_factory=dict)
    rare: dict[str, int] = field(default_factory=dict)
    newest_ns: int = 0

    def add(self, path: str | Path, *, optional: bool = False, rare: bool = False) -> None:
        """Take a path's stamp; see :func:`apt.plugins.index.stamp`."""
        text = str(path)
        if text in self.stamps:
            return
        (self.rare if rare else self.optional if optional else self.stamps).setdefault(text, index.stamp(text))
        try:
            self.newest_ns = max(self.newest_ns, Path(text).stat().st_ctime_ns)
        except OSError:
            return

    def all_stamps(self) -> dict[str, int]:
        """Return what is to be watched."""
        chosen = self.stamps
        for more in (self.optional, self.rare):
            every = more | chosen
            chosen = every if len(every) <= _WATCHED_PATHS else chosen
        return chosen

    def changed_since(self, moment_ns: int) -> bool:
        """Whether a path has changed after a moment, or so shortly before that its next change might look the same."""
        return self.newest_ns >= moment_ns - _CLOCK_TICK_NS


#: Coarsest clock by which a file system tells the time of a change.
_CLOCK_TICK_NS: Final = 10_000_000


def wait_a_tick() -> None:
    """Wait until what changes from now on gets another time than what has changed before."""
    time.sleep(_CLOCK_TICK_NS / 1e9)


@dataclass(slots=True)
class Found:
    """A plugin before anything of it is imported.

    :param target: ``"module:Class"`` or ``"module:"``.
    :param root: the file or directory that holds its code; ``None`` where it was not found.
    :param facts: what it says of itself, by field: metadata, ``commands``, ``components``, ``hooks``.
    :param fault: why what it says cannot be taken.
    """

    source: str
    folder: str
    target: str
    root: Path | None
    location: str
    facts: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def foreign(self) -> bool:
        """Whether others than this package wrote it."""
        return not self.source.startswith("built-in")


def find(watch: Watch) -> list[Found]:
    """Return the plugins of all sources, in the order of precedence; ``watch`` takes up what was looked at."""
    return [*_builtin(watch), *_entry_points(watch), *_dropins(watch)]


def _builtin(watch: Watch) -> Iterator[Found]:
    here = Path(__file__).parent
    for group, source in _BUILTIN_SOURCES.items():
        watch.add(f"{here / group}/")
        for folder in sorted((here / group).iterdir()):
            file = folder / "__init__.py"
            if folder.is_dir() and not folder.name.startswith(("_", ".")):
                watch.add(file)
                if file.is_file():
                    module = f"apt.plugins.{group}.{folder.name}"
                    yield _described(Found(source, folder.name, f"{module}:", folder, str(folder)), file)


def _dropins(watch: Watch) -> Iterator[Found]:
    directory = Path(index.plugin_directory())
    watch.add(f"{directory}/")
    watch.add(f"{directory}/.")
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("_"):  # a helper, which the seal of every drop-in covers
            watch.add(entry, optional=True)
        stem = entry.name.removesuffix(".py")
        if entry.name.startswith(("_", ".")) or not re.fullmatch(r"[\w-]+", stem):
            continue
        try:
            found = _dropin(entry, stem, watch)
        except OSError as error:  # a directory that may not be entered, a name that is too long
            told = f"{entry.name} cannot be looked at: {error.strerror}"
            facts = {"name": stem.replace("_", "-")}
            found = Found("drop-in", stem, f"{DROPINS}.{stem}:", None, str(entry), facts, told)
        if found is not None:
            yield found


def _dropin(entry: Path, stem: str, watch: Watch) -> Found | None:
    """Return the plugin in an entry of the plugin directory; ``None`` where there is none."""
    folder = entry.is_dir()
    file = entry / "__init__.py" if folder else entry
    if file.suffix != ".py" or (folder and entry.name != stem):
        return None
    _watch_code(watch, entry, file)
    if not file.is_file():
        return None
    found = _described(Found("drop-in", stem, f"{DROPINS}.{stem}:", entry, str(file)), file)
    if not folder and (entry.parent / stem / "__init__.py").is_file():
        found.fault = f"{entry.name} is never imported: the directory {stem} is a module of the same name"
    return found


def _watch_code(watch: Watch, root: Path, module: Path) -> None:
    """Watch a plugin's files: what declares it, its manifest or else its module, and the others while there are few."""
    manifest = manifest_of(root, module)
    watch.add(manifest or module)
    watch.add(module, optional=True)
    if not root.is_dir():
        return
    for directory in (module.parent, root):  # which change when a manifest is put into them
        watch.add(directory, optional=True)
    try:
        for file in itertools.islice(code_files(root), _WATCHED_PATHS):
            watch.add(file, optional=True)
    except OSError:
        return


def _entry_points(watch: Watch) -> Iterator[Found]:
    seen: set[str] = set()
    for entry in index.search_path():
        watch.add(entry)
    for dist in importlib.metadata.distributions(path=index.search_path()):
        points = _points(dist, watch)
        if not points:
            continue
        said = _metadata(dist)
        name = canonical(said["distribution"])
        if name in seen:  # Python imports the one that comes first on the search path
            continue
        if said["distribution"] and said["version"]:  # its metadata was read
            seen.add(name)
        for point in points:
            yield _from_distribution(dist, said, point, watch, index.search_path())


def of_distribution(dist: importlib.metadata.Distribution, search_path: Sequence[str]) -> list[Found]:
    """Return the plugins of a distribution that is not installed, whose modules lie on a search path."""
    said = _metadata(dist)
    return [_from_distribution(dist, said, p, Watch(), search_path) for p in _points(dist, Watch())]


def _points(dist: importlib.metadata.Distribution, watch: Watch) -> list[importlib.metadata.EntryPoint]:
    """Return a distribution's plugins; none where its metadata is damaged."""
    directory = getattr(dist, "_path", None)  # public API names no path; without it a change in place is unseen
    try:
        if directory is not None and not all(map(_readable, (Path(directory, n) for n in _METADATA))):
            return []
        if directory is not None:
            watch.add(Path(directory, "entry_points.txt"), rare=True)
        text = dist.read_text("entry_points.txt") or ""
        if GROUP not in text:
            return []
        if directory is not None:
            watch.add(Path(directory) / "entry_points.txt")
            watch.add(Path(directory) / "METADATA", optional=True)
        points = list(dist.entry_points.select(group=GROUP))
        return [p for p in points if TARGET.fullmatch(p.value) or re.fullmatch(r"[\w.]+", p.value)]
    except Exception:  # the library raises whatever its parsers do; one damaged package hides no other
        return []


def _readable(file: Path) -> bool:
    """Whether a file is a regular one, or not there: reading a pipe would wait for ever."""
    return file.is_file() or not file.exists()


def _from_distribution(
    dist: importlib.metadata.Distribution,
    said: Mapping[str, str],
    point: importlib.metadata.EntryPoint,
    watch: Watch,
    search_path: Sequence[str],
) -> Found:
    facts = {"name": point.name, **said}
    target = f"{point.module}:{point.attr or ''}"
    name = facts.pop("distribution")
    location = f"distribution {shown(name)}" if name else str(getattr(dist, "_path", "metadata that cannot be read"))
    found = Found("entry point", shown(point.name), target, None, location, facts)
    file = source_of(point.module, search_path) or source_of(point.module, _project(dist))
    if file is None:
        return found
    found.root = _root_of(file, point.module)
    _watch_code(watch, found.root, file)
    return _described(found, file)


def _root_of(file: Path, module: str) -> Path:
    """Return what holds a module's code: its outermost package, of which Python runs every ``__init__.py`` above it.

    Of a module in a namespace, which others fill too, it is the directory; of one in no package the file itself.
    """
    names = module.split(".")
    inner = file.parent if file.name == "__init__.py" else file
    packages = [inner, *inner.parents][: len(names)]  # the module itself comes first
    outermost = next((p for p in reversed(packages) if (p / "__init__.py").is_file()), None)
    return outermost or (file.parent if len(names) > 1 else file)


def _project(dist: importlib.metadata.Distribution) -> list[str]:
    """Return where an editable installation has its modules: setuptools finds them by code of its own, no path."""
    root = address(dist) if origin(dist) == "editable" else ""
    return [str(Path(root, "src")), root] if root else []


def _metadata(dist: importlib.metadata.Distribution) -> dict[str, str]:
    """Return what a distribution says of itself; little where its metadata is damaged.

    ``distribution`` is ``""`` where pip would know it by another name, or by none.
    """
    try:
        metadata: Any = dist.metadata  # an email.message.Message; its typed protocol lacks get()
        author = metadata.get("Author") or metadata.get("Author-email") or ""
        said = {
            "distribution": name_of(dist),
            "version": dist.version,
            "author": author,
            "description": metadata["Summary"],
        }
        return {field: str(text or "") for field, text in said.items()}
    except Exception:  # as above
        return {"distribution": "", "version": "", "author": "", "description": ""}


def source_of(module: str, search_path: Sequence[str]) -> Path | None:
    """Find a module's file by its name alone: importlib would import its parents."""
    relative = Path(*module.split("."))
    for entry in search_path:
        for candidate in (Path(entry, relative, "__init__.py"), Path(entry, relative).with_suffix(".py")):
            with suppress(OSError):  # a place that cannot be entered holds nothing for Python either
                if candidate.is_file():
                    return candidate
    return None


def manifest_of(root: Path | None, module: Path) -> Path | None:
    """Return the manifest beside a plugin's module, else that of its package; ``None`` without one."""
    if root is None or not root.is_dir():
        return None
    return next((d / FILE for d in (module.parent, root) if (d / FILE).exists()), None)


def _described(found: Found, file: Path) -> Found:
    """Fill in what the source and the manifest say; what the manifest says counts."""
    module, _, wanted = found.target.partition(":")
    found.facts = {"name": found.folder.replace("_", "-"), **found.facts}
    try:
        found.facts |= read_source(file, module, wanted)
        if found.foreign and (manifest := manifest_of(found.root, file)):
            found.facts |= read_manifest(manifest, found.folder)
    except (AptError, OSError) as error:
        found.fault = str(error)
    except Exception as error:  # whatever a hostile file can raise, it costs nobody but this plugin
        found.fault = f"{type(error).__name__}: {first_line(error)}"
    return found
