"""``plugin doctor``: faults of the plugins and of what holds them. No plugin is imported, in any process."""

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.diagnosis import findings_tables
from apt.checkpoint.findings import Finding, error, note, warning
from apt.console.errors import AptError, NotFoundError
from apt.console.table import Table
from apt.plugins import build, distributions, host, index, manifest, ownership, packages, source, verdicts
from apt.plugins.dependencies import HELD, held_versions, installed_version
from apt.plugins.discovery import GROUP, Found, Watch, find, manifest_of, source_of
from apt.plugins.records import PluginRecord
from apt.plugins.regular import read_regular
from apt.plugins.uninstalling import restoring

#: A larger list of entry points is none.
_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """The result of ``plugin doctor``; ``looked_at`` are the plugins, by their names."""

    looked_at: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether no finding is an error."""
        return not any(f.severity == "error" for f in self.findings)

    def tables(self) -> list[Table]:
        """Show the verdict and the findings."""
        counts = [(s, sum(f.severity == s for f in self.findings)) for s in ("error", "warning", "note")]
        told = ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts if n) or "nothing found"
        return [Table("", ("plugins", "findings"), [(str(len(self.looked_at)), told)]), *findings_tables(self.findings)]


def examine(name: str = "") -> DoctorResult:
    """Look for faults of all plugins and of what holds them, or of one plugin.

    :raises NotFoundError: for a name that is no plugin's.
    """
    data = host.load()
    chosen = [data.plugin(name)] if name else list(data.plugins)
    found = {(f.location, f.folder): f for f in find(Watch())}
    findings: list[Finding] = []
    for record in chosen:
        findings += _of_plugin(record, found.get((record.location, record.folder)))
    for distribution in dict.fromkeys(p.distribution for p in chosen if p.distribution):
        findings += _of_distribution(distribution)
    if not name:
        findings += [
            *_of_directory(),
            *_of_metadata({p.folder for p in data.plugins}),
            *_of_state(data.plugins),
            *_of_cache(),
            *_of_environment(),
        ]
    order = ("error", "warning", "note")
    return DoctorResult(tuple(p.name for p in chosen), tuple(sorted(findings, key=lambda f: order.index(f.severity))))


def _of_plugin(record: PluginRecord, found: Found | None) -> Iterator[Finding]:
    yield from _of_status(record)
    if not record.foreign:
        return
    yield from _of_verdict(record)
    if found is not None:
        yield from _of_manifest(record, found)


def _of_status(record: PluginRecord) -> Iterator[Finding]:
    if "@" in record.name:
        cause = "two plugins bear one name; the first found of a source, and sources in their order, win"
        yield error("duplicate-name", record.name, record.reason, cause, record.mend)
    elif record.status == "incomplete":
        cause = "a library or a plugin that it needs is missing"
        yield warning("incomplete", record.name, record.reason, cause, record.mend)
    elif record.status == "disabled":
        yield note("disabled", record.name, "is not used", "plugin disable", record.mend)
    elif record.status == "quarantined":
        cause = "its trial failed; it is not used until it passes one"
        yield error("quarantined", record.name, record.reason, cause, record.mend)
    elif record.status == "broken":
        taken = "belongs to" in record.reason or "comes first" in record.reason
        code = "taken" if taken else "conflict" if record.reason.startswith("conflicts") else "broken"
        yield error(code, record.name, record.reason, "what it declares cannot be taken", record.mend)
    for text in record.optional_dependencies:
        if record.usable and _missing(text):
            mend = f"apt_model plugin install {record.name} --optional"
            yield note("optional-missing", record.name, f"could use {text}", "it is not installed", mend)


def _missing(requirement: str) -> bool:
    from apt.plugins.dependencies import missing

    try:
        return bool(missing([requirement]))
    except AptError:
        return True


def _of_verdict(record: PluginRecord) -> Iterator[Finding]:
    verdict = verdicts.find(verdicts.sealed_path(record))
    mend = f"apt_model plugin try {record.name}"
    if record.status == "untried" and verdict is None:
        yield note(
            "untried", record.name, f"sha256 {record.sha256[:12] or 'unknown'}", "it has not been used yet", mend
        )
    if verdict is None or not record.root:
        return
    try:
        now = verdicts.seal_of(record)
    except OSError as problem:
        evidence = f"{problem.filename}: {problem.strerror}"
        yield error("unreadable", record.name, evidence, "permissions", f"chmod -R u+rX {shlex.quote(record.root)}")
        return
    if now.sha256 != verdict.seal.sha256:
        evidence = f"its sha256 was {verdict.seal.sha256[:12]}, now {now.sha256[:12]}"
        yield warning("changed", record.name, evidence, "its files were edited or replaced since its trial", mend)


def _of_manifest(record: PluginRecord, found: Found) -> Iterator[Finding]:
    """Compare what ``plugin.toml`` says with what the source says, where both say something."""
    module, _, wanted = found.target.partition(":")
    file = source_of(module, index.search_path()) if record.distribution else Path(record.root, "__init__.py")
    if file is None:
        return
    try:
        if (held := manifest_of(found.root, file)) is None:
            return
        says = manifest.read_manifest(held, found.folder)
        is_ = source.read_source(file, module, wanted)
    except (AptError, OSError, ValueError, RecursionError):
        return  # its status tells
    for field in says:
        if field in is_ and (mine := _comparable(says[field])) != (theirs := _comparable(is_[field])):
            mend = f"make {field} the same in both"
            evidence = f"{manifest.FILE}: {field} = {mine}; {file.name}: {theirs}"
            yield warning("manifest-differs", record.name, evidence, "one of the two was not kept up", mend)


def _comparable(value: Any) -> Any:
    """Return what of a field counts: of commands and components their names."""
    if isinstance(value, list | tuple):
        return sorted(" ".join(filter(None, (v.get("kind"), v["name"]))) if isinstance(v, dict) else v for v in value)
    return value


def _of_distribution(name: str) -> Iterator[Finding]:
    dist = distributions.find(name)
    if dist is None or distributions.origin(dist) == "editable":
        return
    reinstall = restoring(name) or f"install {name} anew"
    try:
        differing = distributions.altered(dist)
    except (NotFoundError, OSError) as problem:
        cause = "an installation that was interrupted, or permissions"
        yield error("no-record", name, str(problem), cause, reinstall)
        return
    if differing:
        evidence = f"{len(differing)} files, {', '.join(differing[:3])}"
        cause = "files of the package were edited, damaged or removed since it was installed"
        yield error("files-differ", name, evidence, cause, reinstall)


def _of_metadata(known: set[str]) -> Iterator[Finding]:
    """Find distributions that mean to bring a plugin, and whose entry points cannot be read."""
    for entry in index.search_path():
        for file in _entry_points(Path(entry)):
            try:
                text = read_regular(file, _LARGEST).decode("utf-8", "replace")
            except (AptError, OSError):
                continue
            _, found, section = text.partition(f"[{GROUP}]")
            lines = [line.strip() for line in section.partition("\n[")[0].splitlines() if found]
            names = [line.partition("=")[0].strip() for line in lines if line and not line.startswith("#")]
            if lost := ", ".join(repr(n) for n in names if n not in known):
                evidence, cause = f"no plugin is found for {lost}", "entry_points.txt is damaged"
                yield error("bad-metadata", str(file.parent), evidence, cause, "install it anew")


def _entry_points(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob("*.dist-info/entry_points.txt"))
    except OSError:  # a place that cannot be entered holds nothing for Python either
        return []


def _of_directory() -> Iterator[Finding]:
    directory = Path(index.plugin_directory())
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as problem:
        yield error(
            "unreadable",
            str(directory),
            str(problem.strerror),
            "its drop-ins are not found",
            f"chmod u+rwx {shlex.quote(str(directory))}",
        )
        return
    told: set[str] = set()  # the fault of one entry is one of the directory, and the other way round
    for path in (*entries, directory):
        if (reason := ownership.fault(path)) and reason not in told:
            told.add(reason)
            mend = reason.rpartition("; ")[2] if "chmod" in reason else f"chown {os.getuid()} {shlex.quote(str(path))}"
            yield error("ownership", str(path), reason.partition("; ")[0], "others could change what it does", mend)


def _of_state(plugins: tuple[PluginRecord, ...]) -> Iterator[Finding]:
    known = {p.name for p in plugins}
    for name in build.disabled_plugins():
        if name not in known:
            evidence, mend = f"is in {index.state_path()}", f"remove {name!r} from that file"
            yield note("disabled-unknown", name, evidence, "the plugin was removed by other means", mend)


def _of_cache() -> Iterator[Finding]:
    cache = Path(index.cache_directory())
    mend = "mend its permissions, or set XDG_CACHE_HOME"
    if os.environ.get("APT_NO_CACHE"):
        yield note(
            "no-cache", "APT_NO_CACHE", "is set", "every command looks at all plugins anew", "unset APT_NO_CACHE"
        )
    elif not _writable(cache):
        cause = "every command looks at all plugins anew, and tries foreign ones again"
        yield warning("cache-not-writable", str(cache), "cannot be written", cause, mend)
    elif index.ready_text("data") is None:
        yield warning("no-index", str(cache), "holds no current index", "something changes all the time", mend)
    stale = []
    try:
        files = sorted(Path(verdicts.directory()).glob("*.json"))
    except OSError:
        return
    for file in files:
        path = _tried(file)
        if path is not None and path.startswith("/") and not os.path.exists(path):  # noqa: PTH110 - raises nothing
            stale.append(str(file))
    if stale:
        evidence = f"{len(stale)} verdicts on files that are gone"
        yield note("stale-verdicts", verdicts.directory(), evidence, "plugins were removed", f"rm {shlex.join(stale)}")


def _tried(file: Path) -> str:
    """Return the path that a verdict's file is about; ``""`` when it cannot be read."""
    try:
        path = json.loads(read_regular(file, verdicts.LARGEST).partition(b"\n")[2])["seal"]["path"]
    except (AptError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return path.partition("\0")[0] if isinstance(path, str) else ""


def _writable(directory: Path) -> bool:
    """Whether a directory, or the first above it that exists, can be written."""
    while not os.path.lexists(directory) and directory != directory.parent:
        if not os.access(directory.parent, os.X_OK) and os.path.lexists(directory.parent):
            return False  # what cannot be entered does not tell whether it holds anything
        directory = directory.parent
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)  # noqa: PTH112 - see above


def _of_environment() -> Iterator[Finding]:
    import sys

    if not packages.available():
        mend = f"{sys.executable} -m ensurepip"
        yield warning(
            "no-pip", sys.executable, "this Python has no pip", "nothing can be installed or uninstalled", mend
        )
    yield note("held", "environment", ", ".join(held_versions()) or "-", "no plugin may replace these", "-")
    for name in HELD:
        if installed_version(name) is None:
            yield error(
                "missing-package", name, "is not installed", "an incomplete installation", f"pip install {name}"
            )
