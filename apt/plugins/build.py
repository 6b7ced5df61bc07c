"""Building the index: every plugin is found, asked what it declares, and judged by itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from apt.console import catalogue, output
from apt.console.errors import AptError, BadInputError
from apt.plugins import dependencies, helptext, index
from apt.plugins.base import API
from apt.plugins.core import CORE_COMMANDS
from apt.plugins.discovery import Found, find
from apt.plugins.records import CommandRecord, ComponentRecord, IndexData, PluginList, PluginRecord
from apt.registry import CORE_COMPONENTS, Component

#: Sources whose change makes the index stale, beside the plugins themselves.
_OWN_SOURCES = ("base", "build", "core", "declare", "discovery", "helptext", "hooks", "hookspecs", "records", "trial")


def build() -> IndexData:
    """Build the index and write it to the cache."""
    here = Path(__file__).parent
    sources = [index.state_path(), catalogue.path("zh-CN"), *(here / f"{n}.py" for n in _OWN_SOURCES)]
    stamps = {str(p): index.stamp(str(p)) for p in sources}
    found = find(stamps)
    data = _Builder(_previous_trials()).build(found)
    listing = PluginList(index.plugin_directory(), data.plugins)
    sections = {"list-json": output.to_json(listing), "data": data.to_json()}
    for language, mark in (("en", ""), ("zh-CN", ".zh-CN")):
        sections[f"help{mark}"] = helptext.render(data.commands, data.plugins, language)
        sections[f"list{mark}"] = "\n\n".join(output.format_table(t, language) for t in listing.tables())
    index.write(stamps, sections)
    return data


def disabled_plugins() -> list[str]:
    """Return the canonical names of the plugins that the user has disabled."""
    try:
        names = json.loads(Path(index.state_path()).read_text(encoding="utf-8"))["disabled"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def set_disabled(names: list[str]) -> None:
    """Write which plugins are disabled."""
    path = Path(index.state_path())
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"disabled": sorted(set(names))}, ensure_ascii=False, indent=2) + "\n"
    index.replace_file(str(path), text.encode())


def _previous_trials() -> dict[str, Any]:
    """Return what earlier trials of foreign plugins declared, from an index that may be stale."""
    text = index.stale_text("data")
    try:
        return dict(json.loads(text)["trials"]) if text else {}
    except (ValueError, KeyError, TypeError):
        return {}


class _Builder:
    """Collects records; the first plugin to claim a name, a command or a component keeps it."""

    def __init__(self, previous: dict[str, Any]) -> None:
        self._previous = previous
        self._trials: dict[str, Any] = {}
        self._disabled = set(disabled_plugins())
        self._plugins: dict[str, PluginRecord] = {}
        self._commands = {c.name: c for c in CORE_COMMANDS}
        self._components = {(c.kind, c.name): ComponentRecord(**_fields(c)) for c in CORE_COMPONENTS}

    def build(self, found: list[Found]) -> IndexData:
        """Judge every plugin and return the records."""
        for each in found:
            self._keep(*self._judge(each))
        self._relate()
        ready = {p.name for p in self._plugins.values() if p.status == "ready"}
        return IndexData(
            plugins=tuple(self._plugins.values()),
            commands=tuple(self._commands.values()),
            components=tuple(c for c in self._components.values() if c.plugin in ready),
            trials=self._trials,
        )

    def _judge(self, found: Found) -> tuple[PluginRecord, dict[str, Any]]:
        """Return a plugin's record and what it declares: all of it when it is ready, else what its source says."""
        facts = {**found.facts, "commands": found.commands, "components": []}
        record = _record(found, facts)
        try:
            if (refused := self._refuse(record, facts)) is not None:
                return refused, facts
            # What the class leaves open is as the distribution says.
            facts |= {k: v for k, v in self._ask(found).items() if v or k not in facts}
            record = _record(found, facts)
            # Once more: a name or requirements that are computed are known only now.
            return self._refuse(record, facts) or record, facts
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a built-in plugin that calls sys.exit at import is broken, not fatal
            return _not_ready(record, "broken", _reason(error)), facts

    def _refuse(self, record: PluginRecord, facts: dict[str, Any]) -> PluginRecord | None:
        """Return the record of a plugin that is not usable for what it says of itself; ``None`` when nothing is wrong.

        :raises BadInputError: for a requirement that is none, or a name that is taken.
        """
        if facts.get("api", API) > API:
            raise BadInputError(f"needs plugin interface {facts['api']}; this apt_model has {API}")
        if record.name in self._disabled:
            return _not_ready(record, "disabled", "disabled by the user")
        if missing := dependencies.missing(record.required_dependencies):
            record = dataclasses.replace(record, missing=tuple(missing))
            return _not_ready(record, "incomplete", f"needs {', '.join(missing)}")
        for name in record.commands:
            if name in self._commands:
                owner = self._commands[name].plugin or "apt_model itself"
                raise BadInputError(f"its command {name!r} belongs to {owner}")
        for component in facts["components"]:
            key = (component["kind"], component["name"])
            if key in self._components:
                owner = self._components[key].plugin or "apt_model itself"
                raise BadInputError(f"its {key[0]} {key[1]!r} belongs to {owner}")
        return None

    def _ask(self, found: Found) -> dict[str, Any]:
        """Return what a plugin declares: a foreign one is imported in a child process, once for each change of it."""
        from apt.plugins import declare, trial

        if not found.foreign:
            return declare.describe(found.target)
        key = f"{found.target} {found.location}"
        seal = index.stamp(str(found.file)) if found.file else str(found.facts.get("version"))
        before = self._previous.get(key)
        if not (isinstance(before, dict) and before.get("seal") == seal and isinstance(before.get("declared"), dict)):
            before = {"seal": seal, "declared": trial.describe_in_child(found.target)}
        self._trials[key] = before
        return dict(before["declared"])

    def _keep(self, record: PluginRecord, facts: dict[str, Any]) -> None:
        if record.name in self._plugins:
            first = self._plugins[record.name]
            reason = f"the {first.source} plugin of that name comes first ({first.location})"
            mend = f"rename the plugin in {record.location}, or remove it"
            name = f"{record.name}@{record.folder}"
            while name in self._plugins:
                name += "+"
            changes: dict[str, Any] = {"name": name, "commands": (), "components": (), "missing": ()}
            self._plugins[name] = dataclasses.replace(record, **changes, status="broken", reason=reason, mend=mend)
            return
        self._plugins[record.name] = record
        for command in facts["commands"]:
            known = CommandRecord(
                command["name"], command["target"], command["help"] or record.description, record.name
            )
            self._commands.setdefault(known.name, known)
        if record.status == "ready":
            for component in facts["components"]:
                made = ComponentRecord(**component, plugin=record.name)
                self._components[made.kind, made.name] = made

    def _relate(self) -> None:
        """Take out plugins whose required plugins are not usable, or beside which a conflicting one is."""
        changed = True
        while changed:
            changed = False
            for name, record in list(self._plugins.items()):
                judged = self._related(record) if record.status == "ready" else record
                if judged is not record:
                    self._plugins[name] = judged
                    changed = True

    def _related(self, record: PluginRecord) -> PluginRecord:
        def usable(name: str) -> bool:
            return name in self._plugins and self._plugins[name].status == "ready"

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


def _record(found: Found, facts: dict[str, Any]) -> PluginRecord:
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
        required_dependencies=tuple(facts.get("required_dependencies", ())),
        optional_dependencies=tuple(facts.get("optional_dependencies", ())),
        requires=tuple(facts.get("requires", ())),
        conflicts=tuple(facts.get("conflicts", ())),
        hooks=tuple(facts.get("hooks", ())),
        components=tuple(f"{c['kind']} {c['name']}" for c in facts["components"]),
    )


def _fields(component: Component) -> dict[str, str]:
    return {f.name: getattr(component, f.name) for f in dataclasses.fields(component)}


def _not_ready(record: PluginRecord, status: Any, reason: str) -> PluginRecord:
    mends = {
        "disabled": f"apt_model plugin enable {record.name}",
        "incomplete": f"apt_model plugin install {record.name}",
        "broken": f"apt_model plugin disable {record.name}",
    }
    return dataclasses.replace(record, status=status, reason=reason, mend=record.mend or mends[status])


def _reason(error: BaseException) -> str:
    from apt.plugins.trial import one_line

    return str(error) if isinstance(error, AptError) else one_line(error)
