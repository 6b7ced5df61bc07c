"""Building the index: every plugin is found, and judged by what it says of itself; none is imported."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from apt import language
from apt.console import output
from apt.console.errors import AptError, BadInputError, CannotWriteError, first_line
from apt.plugins import completion_tree, dependencies, dropins, helptext, index, verdicts
from apt.plugins.base import API
from apt.plugins.completion_words import shown
from apt.plugins.core import CORE_COMMANDS
from apt.plugins.discovery import Found, Watch, find, wait_a_tick
from apt.plugins.manifest import NAME, TARGET
from apt.plugins.records import CommandRecord, ComponentRecord, IndexData, PluginList, PluginRecord
from apt.plugins.regular import read_regular
from apt.registry import CORE_COMPONENTS, KINDS, Component, did_you_mean

#: Sources whose change makes the index stale, beside the plugins themselves.
_OWN_SOURCES: Final = (
    "base", "build", "completion_tree", "core", "declare", "dependencies", "discovery", "dropins", "helptext", "hooks",
    "hookspecs", "manifest", "ownership", "records", "source", "trial", "verdicts",
)  # fmt: skip
_CORE: Final = "apt_model itself"
_LARGEST_STATE: Final = 1 << 20
#: So often the index is built anew when what it is built from changes meanwhile.
_ROUNDS: Final = 3


def build() -> IndexData:
    """Build the index and write it to the cache."""
    for _ in range(_ROUNDS):
        begun_ns = time.time_ns()
        watch = Watch()
        data = _look(watch)
        if not watch.changed_since(begun_ns):
            index.write(watch.all_stamps(), sections(data))
            break
        wait_a_tick()  # what changed a moment ago could change again without looking different
    return data


def _look(watch: Watch) -> IndexData:
    here = Path(__file__).parent
    own = [str(here / f"{name}.py") for name in _OWN_SOURCES]
    for path in (index.state_path(), f"{index.home()}/.", verdicts.directory(), *own):
        watch.add(path)
    if language() != "en":
        from apt.console import catalogue

        watch.add(catalogue.path(language()))
    return _Builder().build(find(watch))


def sections(data: IndexData) -> dict[str, str]:
    """Return the texts that the index holds ready, in the user's language, and its records."""
    listing = PluginList(index.plugin_directory(), data.plugins)
    return {
        "help": helptext.render(data.commands, data.plugins, language()),
        "list": "\n\n".join(output.format_table(t, language()) for t in listing.tables()),
        "list-json": output.to_json(listing),
        "data": data.to_json(),
        "complete": completion_tree.section(data),
    }


def disabled_plugins() -> list[str]:
    """Return the canonical names of the plugins that the user has disabled."""
    try:
        names = json.loads(read_regular(Path(index.state_path()), _LARGEST_STATE))["disabled"]
    except (AptError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [n for n in names if isinstance(n, str) and n.isprintable()] if isinstance(names, list) else []


def set_disabled(names: list[str]) -> None:
    """Write which plugins are disabled.

    :raises CannotWriteError: when that cannot be kept.
    """
    path = Path(index.state_path())
    text = json.dumps({"disabled": sorted(set(names))}, ensure_ascii=False, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        index.replace_file(str(path), text.encode())
    except OSError as error:
        raise CannotWriteError(f"cannot write: {path}: {error.strerror}") from None


class _Builder:
    """Collects records; the first plugin to claim a name, a command or a component keeps it."""

    def __init__(self) -> None:
        self._disabled = set(disabled_plugins())
        #: Files and directories of plugins that have passed a trial, also of those that have changed since.
        self._used: set[str] = set()
        self._plugins: dict[str, PluginRecord] = {}
        self._commands = {c.name: c for c in CORE_COMMANDS}
        self._components = {(c.kind, c.name): _component_record(c) for c in CORE_COMPONENTS}

    def build(self, found: list[Found]) -> IndexData:
        """Judge every plugin and return the records, in the order in which the plugins were found."""
        judged = [self._judge(each) for each in found]
        places = {}
        for place in sorted(range(len(judged)), key=lambda i: self._precedence(judged[i][0])):
            places[self._keep(*judged[place])] = place
        self._relate()
        plugins = sorted(self._plugins.values(), key=lambda p: places[p.name])
        usable = {p.name for p in plugins if p.usable}
        return IndexData(
            plugins=tuple(plugins),
            commands=tuple(self._commands.values()),
            components=tuple(c for c in self._components.values() if c.plugin in usable),
        )

    def _precedence(self, record: PluginRecord) -> tuple[bool, int, bool, bool]:
        """Order by the right to a name: usable plugins, the sources in their order, used ones before newcomers.

        Of those that nobody has used, the file that bears the name comes before one that claims it.
        """
        rank = ("built-in", "built-in, optional", "entry point", "drop-in").index(record.source)
        newcomer = record.foreign and record.root not in self._used
        return not record.usable, rank, newcomer, record.folder.replace("_", "-") != record.name

    def _judge(self, found: Found) -> tuple[PluginRecord, dict[str, Any]]:
        """Return a plugin's record and what it declares, judged by itself."""
        facts = facts_of(found)
        record = record_of(found, facts)
        missing: list[str] = []
        reason = fault = ""
        try:
            if found.fault:
                raise BadInputError(found.fault)
            if found.foreign:
                facts, record, reason = self._verdict(found, facts, record)
            check(record, facts)
            missing = dependencies.missing(record.required_dependencies)
        except AptError as error:
            fault = str(error)
        except Exception as error:  # whatever a hostile file can raise, it costs nobody but this plugin
            fault = shown(f"{type(error).__name__}: {first_line(error)}")
        if record.name in self._disabled:
            return _not_ready(record, "disabled", "disabled by the user"), facts
        if fault:
            return _not_ready(record, "broken", fault), facts
        if missing:
            record = dataclasses.replace(record, missing=tuple(missing))
            return _not_ready(record, "incomplete", f"needs {', '.join(missing)}"), facts
        return (_not_ready(record, "quarantined", reason) if reason else record), facts

    def _verdict(self, found: Found, facts: dict[str, Any], record: PluginRecord) -> tuple[Any, PluginRecord, str]:
        """Add what is known from the plugin's trial, while its files are those that were tried.

        :returns: what it declares, its record, and why its trial failed.
        :raises BadInputError: when others could have written it.
        """
        if found.source == "drop-in" and found.root and (reason := dropins.fault(found.root)):
            raise BadInputError(reason)
        try:
            seal = verdicts.seal_of(record)
        except OSError as error:
            raise BadInputError(f"{error.filename} cannot be read: {error.strerror}") from None
        sha256 = seal.sha256 if found.root else ""
        record = dataclasses.replace(record, status="untried", sha256=sha256)
        verdict = verdicts.find(seal.path)
        if verdict is not None and not verdict.reason:
            self._used.add(record.root)
        if verdict is None or not verdict.holds(seal, record.target):
            return facts, record, ""
        if not verdict.reason:
            # What the class leaves open is as the distribution says; the options of commands only a manifest tells.
            options = {c["name"]: c.get("options", ()) for c in facts["commands"]}
            facts = facts | {k: _shown(v) for k, v in verdict.declared.items() if v or k not in facts}
            facts["commands"] = [{**c, "options": options.get(c["name"], ())} for c in facts["commands"]]
        record = dataclasses.replace(
            record_of(found, facts),
            sha256=sha256,
            import_seconds=verdict.import_seconds,
            import_bytes=verdict.import_bytes,
        )
        return facts, record, verdict.reason

    def _claim(self, record: PluginRecord, facts: dict[str, Any]) -> PluginRecord:
        """Return the record of a plugin, made unusable when what it declares is another's already."""
        if not record.usable:
            return record
        names = [c["name"] for c in facts["commands"]]
        taken = [
            f"its command {n!r} belongs to {self._commands[n].plugin or _CORE}" for n in names if n in self._commands
        ]
        for component in facts["components"]:
            key = (component["kind"], component["name"])
            if key in self._components:
                taken.append(f"its {key[0]} {key[1]!r} belongs to {self._components[key].plugin or _CORE}")
        return _not_ready(record, "broken", taken[0]) if taken else record

    def _keep(self, record: PluginRecord, facts: dict[str, Any]) -> str:
        """Take up a plugin with what it declares, and return the name under which it is listed."""
        if record.name in self._plugins:
            record = _second(record, self._plugins)
            facts = {"commands": (), "components": ()}
        else:
            record = self._claim(record, facts)
        self._plugins[record.name] = record
        for command in facts["commands"]:
            text, options = command["help"] or record.description, tuple(command.get("options", ()))
            known = CommandRecord(command["name"], command["target"], text, record.name, options=options)
            self._commands.setdefault(known.name, known)
        if record.usable:
            for component in facts["components"]:
                made = ComponentRecord(**component, plugin=record.name)
                self._components[made.kind, made.name] = made
        return record.name

    def _relate(self) -> None:
        """Take out plugins whose required plugins are not usable, or beside which a conflicting one is."""
        changed = True
        while changed:
            changed = False
            for name, record in list(self._plugins.items()):
                judged = self._related(record) if record.usable else record
                if judged is not record:
                    self._plugins[name] = judged
                    changed = True

    def _related(self, record: PluginRecord) -> PluginRecord:
        def usable(name: str) -> bool:
            return name in self._plugins and self._plugins[name].usable

        absent = [n for n in record.requires if not usable(n)]
        if absent:
            known = self._plugins.get(absent[0])
            mend = known.mend if known and known.mend else f"apt_model plugin install {absent[0]}"
            record = dataclasses.replace(record, missing=(*record.missing, *absent), mend=mend)
            return _not_ready(record, "incomplete", f"needs the plugin {', '.join(absent)}")
        beside = [n for n in record.conflicts if usable(n)]
        if beside:
            reason = f"conflicts with the plugin {', '.join(beside)}"
            record = dataclasses.replace(record, mend=f"apt_model plugin disable {beside[0]}")
            return _not_ready(record, "broken", reason)
        return record


def _second(record: PluginRecord, plugins: Mapping[str, PluginRecord]) -> PluginRecord:
    """Return the record of a plugin whose name is another's already."""
    first = plugins[record.name]
    name = f"{record.name}@{record.distribution or record.folder}"
    while name in plugins:
        name += "+"
    reason = f"the {first.source} plugin of that name comes first ({first.location})"
    mend = f"rename the plugin in {record.location}, or remove it"
    changes: dict[str, Any] = {"name": name, "commands": (), "components": (), "missing": (), "mend": mend}
    return _not_ready(dataclasses.replace(record, **changes), "broken", reason)


def check(record: PluginRecord, facts: dict[str, Any]) -> None:
    """Check what a plugin says of itself.

    :raises BadInputError: for what cannot be taken.
    """
    if not NAME.fullmatch(record.name):
        raise BadInputError(f"bad plugin name {record.name!r}: letters, digits and dashes")
    if facts.get("api", API) > API:
        raise BadInputError(f"needs plugin interface {facts['api']}; this apt_model has {API}")
    names = [c["name"] for c in facts["commands"]]
    for name in names:
        if not NAME.fullmatch(name):
            raise BadInputError(f"bad command name {name!r}: letters, digits and dashes")
        if names.count(name) > 1:
            raise BadInputError(f"command {name!r} is registered twice")
    for component in facts["components"]:
        if not component["name"]:
            raise BadInputError(f"bad component name {component['name']!r}")
        if component["kind"] not in KINDS:
            raise BadInputError(
                f"unknown component kind {component['kind']!r}", hint=did_you_mean(component["kind"], KINDS)
            )
    for each in (*facts["commands"], *facts["components"]):
        if each["target"] and not TARGET.fullmatch(each["target"]):
            raise BadInputError(f"bad target {each['target']!r}: expected 'package.module:attribute'")


def facts_of(found: Found) -> dict[str, Any]:
    """Return what a plugin says of itself without its trial, as a terminal can show it."""
    facts: dict[str, Any] = _shown({"commands": [], "components": [], "hooks": [], **found.facts})
    return facts


def _shown(value: Any) -> Any:
    """Return a value with every text in it made one line without control characters and halves of characters."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list | tuple):
        return [_shown(v) for v in value]
    return {k: _shown(v) for k, v in value.items()} if isinstance(value, dict) else value


def record_of(found: Found, facts: dict[str, Any]) -> PluginRecord:
    """Return the record of a plugin as it describes itself, before it is judged."""
    return PluginRecord(
        name=str(facts["name"]),
        version=str(facts.get("version") or "0"),
        source=found.source,
        status="ready",
        commands=tuple(c["name"] for c in facts["commands"]),
        description=str(facts.get("description", "")),
        author=str(facts.get("author", "")),
        folder=found.folder,
        location=found.location,
        target=str(facts.get("class", found.target)),
        root=str(found.root or "") if found.foreign else "",
        required_dependencies=tuple(facts.get("required_dependencies", ())),
        optional_dependencies=tuple(facts.get("optional_dependencies", ())),
        requires=tuple(facts.get("requires", ())),
        conflicts=tuple(facts.get("conflicts", ())),
        hooks=tuple(facts.get("hooks", ())),
        components=tuple(f"{c['kind']} {c['name']}" for c in facts["components"]),
    )


def _component_record(component: Component) -> ComponentRecord:
    return ComponentRecord(**{f.name: getattr(component, f.name) for f in dataclasses.fields(ComponentRecord)})


def _not_ready(record: PluginRecord, status: Any, reason: str) -> PluginRecord:
    mends = {
        "disabled": f"apt_model plugin enable {record.name}",
        "incomplete": f"apt_model plugin install {record.name}",
        "broken": f"apt_model plugin disable {record.name}",
        "quarantined": f"apt_model plugin try {record.name}",
    }
    return dataclasses.replace(record, status=status, reason=reason, mend=record.mend or mends[status])
