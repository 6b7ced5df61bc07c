"""The host: plugins by name, their components, their hooks, their lives.

Everything known comes from the index; a plugin's code is imported when its command runs or a hook that it implements
is called, and what goes wrong there is told and stays there.
"""

import atexit
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Final

from apt import events
from apt.console import output
from apt.console.errors import AptError, MissingDependencyError, UsageError, one_line
from apt.console.table import Table
from apt.plugins import index
from apt.plugins.base import Diagnosis, Plugin
from apt.plugins.core import EVENTS, HOOKS
from apt.plugins.records import CommandRecord, ComponentRecord, IndexData, PluginList, PluginRecord
from apt.registry import CORE_COMPONENTS, Component, Registry


class Host:
    """The plugins of one environment and home."""

    def __init__(self, data: IndexData) -> None:
        self.data: Final = data
        self._active: dict[str, Plugin] = {}
        self._failed: set[str] = set()
        self._manager: Any = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._accounts: Any = None
        self._hooks = {h for p in data.plugins if p.usable for h in p.hooks}
        #: What importing and setting up each foreign plugin took in this process.
        self.import_seconds: dict[str, float] = {}

    def registry(self) -> Registry:
        """Return the components of the core and of every usable plugin; nothing is imported."""
        return Registry([*CORE_COMPONENTS, *map(self._component, self.data.components)])

    def _component(self, record: ComponentRecord) -> Component:
        made = Component(record.kind, record.name, record.target, record.schema, record.summary, record.plugin)
        if not self.data.plugin(record.plugin).foreign:
            return made
        return dataclasses.replace(made, admit=lambda: self._admitted(made))

    def _admitted(self, component: Component) -> Component:
        """Set the plugin of a component up, and return the component with the targets that the plugin registers.

        :raises AptError: when the plugin is not usable or no longer registers the component.
        """
        from apt.plugins.declare import Declarations

        record = self.data.plugin(component.plugin)
        plugin = self._wanted(record)
        declarations = Declarations()
        with _told_of(record):
            plugin.register_components(declarations)
        for each in declarations.components:
            if (each["kind"], each["name"]) == (component.kind, component.name):
                return dataclasses.replace(component, target=each["target"], schema=each["schema"], admit=None)
        raise AptError(f"plugin {component.plugin} no longer registers the {component.kind} {component.name!r}")

    def listing(self) -> PluginList:
        """Return what ``plugin list`` shows."""
        return PluginList(index.plugin_directory(), self.data.plugins)

    def activate(self, record: PluginRecord) -> Plugin:
        """Import a plugin, set it up and connect its hooks, once in a process.

        A foreign one is let in only after its trial, and what it prints meanwhile is not shown.

        :raises AptError: when the plugin is not usable.
        :raises Exception: whatever the plugin raises.
        """
        if record.name in self._active:
            return self._active[record.name]
        require_usable(record)
        from apt.plugins import declare

        if not record.foreign:
            plugin = declare.load_class(record.target)()
            plugin.setup()
        else:
            from apt.plugins import trust

            trust.admit(record)
            begun = time.perf_counter()
            with _undisturbed():
                plugin = declare.load_class(record.target)()
                plugin.setup()
            self.import_seconds[record.name] = time.perf_counter() - begun
        self._active[record.name] = plugin
        self._connect(record.name, plugin)
        return plugin

    def _wanted(self, record: PluginRecord) -> Plugin:
        """Activate a plugin whose command or component is asked for: one that does not load is the error.

        :raises AptError: when the plugin is not usable, or whatever a foreign one raises, ``SystemExit`` too: that
            would end the command with a code of the plugin's choosing.
        """
        with _told_of(record):
            return self.activate(record)

    def _connect(self, name: str, plugin: Plugin) -> None:
        """Have a plugin's hooks called; pluggy is imported for the first that has any."""
        if not any(getattr(type(plugin), hook, None) is not getattr(Plugin, hook, None) for hook in EVENTS):
            return
        from apt.plugins import hooks

        if self._manager is None:
            self._manager = hooks.manager()
            self._accounts = hooks.Accounts()
        self._manager.register(hooks.Bridge(plugin, hooks.Guard(name, self._accounts)), name)

    def fire(self, hook: str, **facts: Any) -> list[Any]:
        """Call a hook of every usable plugin that implements it and return what they return.

        Only plugins that implement the hook are imported. One that cannot be, or whose hook raises, is told of and
        left out.

        :raises UsageError: for a hook that does not exist.
        """
        if hook not in self._hooks:
            if hook not in HOOKS:
                raise UsageError(f"no hook is called {hook!r}")
            return []
        for record in self.data.plugins:
            if record.usable and hook in record.hooks and record.name not in self._failed:
                self._try_activate(record)
        if self._manager is None:
            return []
        return list(getattr(self._manager.hook, hook)(**facts))

    def _try_activate(self, record: PluginRecord) -> None:
        try:
            self.activate(record)
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as error:
            self._failed.add(record.name)
            output.warn(f"plugin {record.name} could not be loaded: {one_line(error)}")

    def target_of(self, command: CommandRecord) -> str | Callable[..., Any]:
        """Return what a command is: its target string, or the callable that a plugin registers for it.

        The plugin is set up. Of a foreign one counts what it registers now, not what its manifest said.

        :raises AptError: when the plugin is not usable or no longer registers the command.
        """
        if not command.plugin:
            return command.target
        record = self.data.plugin(command.plugin)
        plugin = self._wanted(record)
        if command.target and not record.foreign:
            return command.target
        from apt.plugins.declare import Declarations

        declarations = Declarations()
        with _told_of(record):
            plugin.register_commands(declarations)
        if command.name not in declarations.commands:
            raise AptError(f"plugin {command.plugin} does not register the command {command.name!r}")
        return declarations.commands[command.name][0]

    def hook_costs(self) -> list[Table]:
        """Return what the hooks of plugins and importing foreign ones have cost so far in this process."""
        rows = [(name, f"{seconds * 1000:.2f}") for name, seconds in self.import_seconds.items()]
        imports = [Table("", ("plugin", "import and setup, ms"), rows)] if rows else []
        return [*imports, *(self._accounts.tables() if self._accounts is not None else [])]

    def listen(self) -> None:
        """Hand the events of the lower rooms to the hooks, and tear the plugins down when the process ends."""
        self._unsubscribe = events.subscribe(self.fire)
        atexit.register(self.close)

    def close(self) -> None:
        """Stop listening and tear down the plugins that were set up."""
        atexit.unregister(self.close)
        self._unsubscribe()
        for name, plugin in reversed(list(self._active.items())):
            del self._active[name]
            try:
                with redirect_stdout(sys.stderr):  # stdout is the command's
                    plugin.teardown()
            except KeyboardInterrupt:  # the user's
                raise
            except BaseException as error:
                output.warn(f"teardown of plugin {name} failed: {one_line(error)}")


@contextmanager
def _told_of(record: PluginRecord) -> Iterator[None]:
    """Turn what a foreign plugin raises into an error of one line that names it.

    :raises AptError: see :meth:`Host._wanted`.
    """
    try:
        yield
    except (AptError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not record.foreign:
            raise
        hint = f"mend it with: apt_model plugin disable {record.name}"
        raise AptError(f"plugin {record.name} could not be loaded: {one_line(error)}", hint=hint) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let nothing be printed, and undo what importing foreign code often changes: standard streams and directory."""
    streams = sys.stdin, sys.stdout, sys.stderr
    try:
        directory = os.open(".", os.O_RDONLY)
    except OSError:  # it is gone, or cannot be read: then nobody can come back to it
        directory = -1
    try:
        with output.silenced():
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        if directory >= 0:
            with suppress(OSError):
                os.fchdir(directory)
            os.close(directory)


def require_usable(record: PluginRecord) -> None:
    """Refuse a plugin that is not usable.

    :raises AptError: with the reason and the command that mends it.
    """
    if record.usable:
        return
    hint = f"mend it with: {record.mend}"
    if record.status == "incomplete":
        raise MissingDependencyError(f"plugin {record.name} {record.reason}", hint=hint)
    if record.status == "disabled":
        raise UsageError(f"plugin {record.name} is {record.reason}", hint=hint)
    if record.status == "quarantined":
        raise AptError(f"plugin {record.name} is in quarantine: {record.reason}", hint=hint)
    raise AptError(f"plugin {record.name} cannot be loaded: {record.reason}", hint=hint)


def load() -> IndexData:
    """Return the index's records, from the cache where it is current; else the index is built."""
    cached = index.ready_text("data")
    if cached is not None:
        try:
            return IndexData.from_json(cached)
        except (ValueError, TypeError, KeyError):
            pass
    from apt.plugins import build  # what it imports costs 40 ms, and most starts do without

    return build.build()


def safe_mode() -> bool:
    """Whether plugins of others are left out in this process: ``apt_model --safe-mode …`` or ``APT_SAFE_MODE=1``."""
    return bool(os.environ.get("APT_SAFE_MODE"))


def without_foreign(data: IndexData) -> IndexData:
    """Return the records with every foreign plugin left out of use."""
    left_out: dict[str, Any] = {
        "status": "disabled",
        "reason": "left out in safe mode",
        "mend": "the same command without --safe-mode and APT_SAFE_MODE",
    }
    foreign = {p.name for p in data.plugins if p.foreign}
    return dataclasses.replace(
        data,
        plugins=tuple(dataclasses.replace(p, **left_out) if p.foreign and p.usable else p for p in data.plugins),
        components=tuple(c for c in data.components if c.plugin not in foreign),
    )


_host: tuple[str, Host] | None = None


def current() -> Host:
    """Return the host of this process and home; it listens to events from the first call on."""
    global _host
    if _host is None or _host[0] != index.home():
        refresh()
        data = load()
        _host = (index.home(), Host(without_foreign(data) if safe_mode() else data))
        _host[1].listen()
    return _host[1]


def refresh() -> None:
    """Let go of the host: the next call of :func:`current` looks at what is installed anew."""
    global _host
    if _host is not None:
        _host[1].close()
        _host = None


def registry() -> Registry:
    """Return the components of the core and of every usable plugin."""
    return current().registry()


def fire(hook: str, **facts: Any) -> list[Any]:
    """Call a hook of every usable plugin; see :meth:`Host.fire`."""
    return current().fire(hook, **facts)


def diagnoses(hook: str, **facts: Any) -> list[Diagnosis]:
    """Call a hook that returns diagnoses, and return all of them; what a plugin returns else is left out."""
    told = [found for found in fire(hook, **facts) if isinstance(found, (list, tuple))]
    return [each for found in told for each in found if isinstance(each, Diagnosis)]


def set_enabled(names: Sequence[str], *, enabled: bool) -> PluginList:
    """Enable or disable plugins, by any of their names; the list shows the new state.

    :raises NotFoundError: for a name that is no plugin's; then nothing is changed.
    """
    from apt.plugins import build

    data = load()
    wanted = {data.plugin(name).name for name in names}
    disabled = set(build.disabled_plugins())
    build.set_disabled(sorted(disabled - wanted if enabled else disabled | wanted))
    refresh()
    fresh = load()
    return PluginList(index.plugin_directory(), tuple(p for p in fresh.plugins if p.name in wanted))
