"""Plugins on pluggy: which hooks a plugin implements, and calling them so that one that raises stops nobody."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

import pluggy

from apt.console import output
from apt.console.errors import BadInputError
from apt.plugins.base import Plugin
from apt.plugins.declare import Declarations
from apt.plugins.hookspecs import PROJECT, HookSpecs, hookimpl

#: Hooks that declare; they are called when the index is built, the others while commands run.
DECLARING: Final = ("register_commands", "register_components")
#: A hook that has raised so often is not called again in this process.
FAILURES_ALLOWED: Final = 3


def names() -> list[str]:
    """Return the names of all hooks."""
    return [name for name, value in vars(HookSpecs).items() if inspect.isfunction(value)]


def manager() -> pluggy.PluginManager:
    """Return a plugin manager that knows the hooks and no plugin."""
    made = pluggy.PluginManager(PROJECT)
    made.add_hookspecs(HookSpecs)
    return made


def implemented(plugin: Plugin) -> list[str]:
    """Return the hooks that a plugin implements: methods of their names that it does not inherit from the base."""
    own = type(plugin)
    return [n for n in names() if callable(getattr(own, n, None)) and getattr(own, n) is not getattr(Plugin, n, None)]


class Bridge:
    """What is registered with pluggy in a plugin's place: its hook methods, each as a function.

    :param wrap: makes the function that is called for an event; it may take fewer of the hook's arguments. The
        declaring hooks are passed their one argument by position, since published plugins name it as they like.
    """

    def __init__(self, plugin: Plugin, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        for name in implemented(plugin):
            method = getattr(plugin, name)
            function = _by_position(method) if name in DECLARING else wrap(name, method)
            marked = getattr(method, f"{PROJECT}_impl", None)
            if marked is None:
                hookimpl(function)
            else:
                setattr(function, f"{PROJECT}_impl", marked)
            setattr(self, name, function)


def _by_position(method: Callable[..., Any]) -> Callable[..., Any]:
    def declaring(registry: Any) -> Any:
        return method(registry)

    return declaring


def _unchanged(_name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def event(*arguments: Any) -> Any:
        return method(*arguments)

    return event


def register(plugin: Plugin, declarations: Declarations) -> list[str]:
    """Let one plugin declare, and return the names of the hooks it implements.

    :raises BadInputError: when the signature of a hook does not fit.
    """
    alone = manager()
    try:
        alone.register(Bridge(plugin, _unchanged), plugin.name)
    except pluggy.PluginValidationError as error:
        raise BadInputError(str(error).strip().splitlines()[-1].strip()) from None
    for name in DECLARING:
        getattr(alone.hook, name)(registry=declarations)
    return implemented(plugin)


class Guard:
    """Wraps a plugin's hooks: an exception is told once, and after three the hook is not called again."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._failures: dict[str, int] = {}

    def __call__(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the guarded hook."""

        @functools.wraps(method)  # pluggy reads the names of the arguments through it
        def guarded(*arguments: Any) -> Any:
            failures = self._failures.get(name, 0)
            if failures >= FAILURES_ALLOWED:
                return None
            try:
                return method(*arguments)
            except (Exception, SystemExit) as error:
                self._failures[name] = failures + 1
                if not failures:
                    output.warn(f"hook {name} of plugin {self._plugin} failed: {type(error).__name__}: {error}")
                return None

        return guarded
