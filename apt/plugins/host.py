"""The host: plugins by name, their components, their hooks, their lives.

Everything known comes from the index; a plugin's code is imported when its command runs or a hook that it implements
is called, and what goes wrong there is told and stays there.
"""

import atexit
from collections.abc import Callable, Sequence
from typing import Any, Final

from apt import events
from apt.console import output
from apt.console.errors import AptError, MissingDependencyError, UsageError
from apt.plugins import index
from apt.plugins.base import Plugin
from apt.plugins.core import HOOKS
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
        self._hooks = {h for p in data.plugins if p.status == "ready" for h in p.hooks}

    def registry(self) -> Registry:
        """Return the components of the core and of every usable plugin; nothing is imported."""
        from apt.plugins.declare import DROPINS, open_dropins

        if any(c.target.startswith(f"{DROPINS}.") for c in self.data.components):
            open_dropins()
        return Registry([*CORE_COMPONENTS, *map(_component, self.data.components)])

    def listing(self) -> PluginList:
        """Return what ``plugin list`` shows."""
        return PluginList(index.plugin_directory(), self.data.plugins)

    def activate(self, record: PluginRecord) -> Plugin:
        """Import a plugin, set it up and connect its hooks, once in a process.

        :raises AptError: when the plugin is not ready.
        :raises Exception: whatever the plugin raises.
        """
        if record.name in self._active:
            return self._active[record.name]
        require_ready(record)
        from apt.plugins import declare, hooks

        plugin = declare.load_class(record.target)()
        plugin.setup()
        self._active[record.name] = plugin
        if set(record.hooks) - set(hooks.DECLARING):
            if self._manager is None:
                self._manager = hooks.manager()
            self._manager.register(hooks.Bridge(plugin, hooks.Guard(record.name)), record.name)
        return plugin

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
            if record.status == "ready" and hook in record.hooks and record.name not in self._failed:
                self._try_activate(record)
        if self._manager is None:
            return []
        return list(getattr(self._manager.hook, hook)(**facts))

    def _try_activate(self, record: PluginRecord) -> None:
        try:
            self.activate(record)
        except (Exception, SystemExit) as error:
            self._failed.add(record.name)
            output.warn(f"plugin {record.name} could not be loaded: {type(error).__name__}: {error}")

    def callable_of(self, command: CommandRecord) -> Callable[..., Any]:
        """Return the callable that a plugin itself registers for a command; the plugin is set up.

        :raises AptError: when the plugin is not ready or no longer registers the command.
        """
        from apt.plugins.declare import Declarations

        plugin = self.activate(self.data.plugin(command.plugin))
        declarations = Declarations()
        plugin.register_commands(declarations)
        target, _ = declarations.commands.get(command.name, ("", ""))
        if not callable(target):
            raise AptError(f"plugin {command.plugin} registers no callable for {command.name!r}")
        return target

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
                plugin.teardown()
            except (Exception, SystemExit) as error:
                output.warn(f"teardown of plugin {name} failed: {type(error).__name__}: {error}")


def require_ready(record: PluginRecord) -> None:
    """Refuse a plugin that is not ready.

    :raises AptError: with the reason and the command that mends it.
    """
    if record.status == "ready":
        return
    hint = f"mend it with: {record.mend}"
    if record.status == "incomplete":
        raise MissingDependencyError(f"plugin {record.name} {record.reason}", hint=hint)
    if record.status == "disabled":
        raise UsageError(f"plugin {record.name} is disabled", hint=hint)
    raise AptError(f"plugin {record.name} cannot be loaded: {record.reason}", hint=hint)


def _component(record: ComponentRecord) -> Component:
    return Component(record.kind, record.name, record.target, record.schema, record.summary, record.plugin)


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


_host: tuple[str, Host] | None = None


def current() -> Host:
    """Return the host of this process and home; it listens to events from the first call on."""
    global _host
    if _host is None or _host[0] != index.home():
        refresh()
        _host = (index.home(), Host(load()))
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
