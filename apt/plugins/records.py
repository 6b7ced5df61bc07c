"""What the index knows of plugins, commands and components: plain frozen records, to and from JSON."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from apt.console.errors import NotFoundError
from apt.console.table import Table
from apt.console.units import format_bytes
from apt.registry import did_you_mean

#: ``ready`` to use; ``untried``: foreign code that is tried in a child process when it is first used; ``disabled`` by
#: the user; ``incomplete``: something it needs is missing; ``broken``: what it says of itself cannot be taken;
#: ``quarantined``: its trial failed, and it is not used until its files change.
Status = Literal["ready", "untried", "disabled", "incomplete", "broken", "quarantined"]
USABLE: Final = ("ready", "untried")
_DISTRIBUTION: Final = "distribution "


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """A command of the root: what help shows and what running it imports.

    :param target: ``"package.module:attribute"``; ``""`` for a callable that the plugin itself registers.
    :param plugin: canonical name; ``""`` for the core.
    :param section: heading in ``--help``.
    :param options: of a foreign command, as its manifest lists them for completion: ``--name=`` takes a value.
    """

    name: str
    target: str
    help: str
    plugin: str = ""
    section: str = "Plugins"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """A component as a plugin declares it; see :class:`apt.registry.Component`."""

    kind: str
    name: str
    target: str
    schema: str
    summary: str
    plugin: str


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A plugin as ``plugin list`` shows it.

    :param folder: name of its folder or file, which is accepted as a name of it.
    :param target: ``"module:Class"``; the class may be left out where it is not known.
    :param location: file or directory, or the distribution that brings it.
    :param root: file or directory of a foreign plugin's code; ``sha256`` of it, over names and contents.
    :param import_seconds: what importing it cost in its trial, ``import_bytes`` in memory; ``None`` when not tried.
    :param missing: requirements that are not installed, and plugins that it requires.
    :param reason: why it is not ready; ``mend``: the command that changes that.
    """

    name: str
    version: str
    source: str
    status: Status
    commands: tuple[str, ...]
    description: str
    author: str
    folder: str
    location: str
    target: str
    missing: tuple[str, ...] = ()
    reason: str = ""
    mend: str = ""
    required_dependencies: tuple[str, ...] = ()
    optional_dependencies: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    root: str = ""
    sha256: str = ""
    import_seconds: float | None = None
    import_bytes: int | None = None

    @property
    def usable(self) -> bool:
        """Whether its commands run, its hooks are called and its components are found."""
        return self.status in USABLE

    @property
    def foreign(self) -> bool:
        """Whether others than this package wrote it."""
        return not self.source.startswith("built-in")

    @property
    def distribution(self) -> str:
        """Name of the distribution that brings it; ``""`` for a built-in one, a drop-in, or unsound metadata.

        That of an entry point without a distribution lies in ``location``.
        """
        named = self.source == "entry point" and self.location.startswith(_DISTRIBUTION)
        return self.location.removeprefix(_DISTRIBUTION) if named else ""

    @property
    def cost(self) -> str:
        """What importing it cost in its trial, for people; ``"-"`` when it was not tried."""
        if self.import_seconds is None or self.import_bytes is None:
            return "-"
        return f"{self.import_seconds * 1000:.0f} ms, {format_bytes(self.import_bytes)}"

    def tables(self) -> list[Table]:
        """Show every field that says something."""
        rows = []
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            text = ", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
            if text:
                rows.append((each.name.replace("_", " "), text))
        return [Table("", ("field", "value"), rows)]


@dataclass(frozen=True, slots=True)
class PluginList:
    """The result of ``plugin list``."""

    plugin_directory: str
    plugins: tuple[PluginRecord, ...]

    def tables(self) -> list[Table]:
        """One line a plugin, and below it what is wrong with those that are not ready."""
        rows = [(p.name, ", ".join(p.commands), p.version, p.source, p.status, p.cost) for p in self.plugins]
        tables = [Table("", ("plugin", "command", "version", "source", "status", "cost of its import"), rows)]
        wrong = [(p.name, p.reason, p.mend) for p in self.plugins if not p.usable]
        if wrong:
            tables.append(Table("", ("plugin", "why it is not ready", "mend it with"), wrong))
        return tables


@dataclass(frozen=True, slots=True)
class IndexData:
    """Everything that the index holds as records."""

    plugins: tuple[PluginRecord, ...]
    commands: tuple[CommandRecord, ...]
    components: tuple[ComponentRecord, ...]

    def plugin(self, name: str) -> PluginRecord:
        """Find a plugin by its canonical name, its command's or its folder's.

        :raises NotFoundError: with the nearest known name.
        """
        wanted = name.replace("_", "-").lower()
        for names in (lambda p: (p.name,), lambda p: p.commands, lambda p: (p.folder,)):
            for plugin in self.plugins:
                if wanted in (n.replace("_", "-").lower() for n in names(plugin)):
                    return plugin
        known = {n for p in self.plugins for n in (p.name, *p.commands)}
        raise NotFoundError(f"no plugin is called {name!r}", hint=did_you_mean(name, known))

    def command(self, name: str) -> CommandRecord | None:
        """Return the command of that name."""
        return next((c for c in self.commands if c.name == name), None)

    def to_json(self) -> str:
        """Return the records as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "IndexData":
        """Read :meth:`to_json` back.

        :raises ValueError, TypeError, KeyError: when the text is something else.
        """
        data = json.loads(text)
        return cls(
            plugins=tuple(PluginRecord(**{k: _frozen(v) for k, v in p.items()}) for p in data["plugins"]),
            commands=tuple(CommandRecord(**{k: _frozen(v) for k, v in c.items()}) for c in data["commands"]),
            components=tuple(ComponentRecord(**c) for c in data["components"]),
        )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
