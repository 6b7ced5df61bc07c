"""Plugins on pluggy: which hooks a plugin implements, and calling them so that one that raises stops nobody."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pluggy

from apt.console import output
from apt.console.errors import BadInputError, one_line
from apt.console.table import Table
from apt.plugins import hookspecs
from apt.plugins.base import Plugin
from apt.plugins.core import HOOKS
from apt.plugins.declare import Declarations

PROJECT: Final = "apt_model"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

#: Hooks that declare; they are called in a plugin's trial, the others while commands run.
DECLARING: Final = ("register_commands", "register_components")
#: A hook that has raised so often is not called again in this process.
FAILURES_ALLOWED: Final = 3


def manager() -> pluggy.PluginManager:
    """Return a plugin manager that knows the hooks and no plugin."""
    for name in HOOKS:
        hookspec(getattr(hookspecs.HookSpecs, name))
    made = pluggy.PluginManager(PROJECT)
    made.add_hookspecs(hookspecs.HookSpecs)
    return made


def implemented(plugin: Plugin) -> list[str]:
    """Return the hooks that a plugin implements: methods that it inherits neither from the base nor from a protocol."""
    return [name for name in HOOKS if _written_in(type(plugin), name)]


def _written_in(plugin_class: type, name: str) -> bool:
    for each in plugin_class.__mro__:
        if name in vars(each):
            return each is not Plugin and each.__module__ != hookspecs.__name__ and callable(vars(each)[name])
    return False


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


def _own_copy(value: Any) -> Any:
    """Copy what a hook is told, as deep as it consists of dicts and lists; other objects are what they are."""
    if type(value) is dict:
        return {key: _own_copy(each) for key, each in value.items()}
    return [_own_copy(each) for each in value] if type(value) is list else value


@dataclass(slots=True)
class Account:
    """What one plugin's hook has cost in this process."""

    calls: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Accounts:
    """Costs by plugin and hook."""

    entries: dict[tuple[str, str], Account] = field(default_factory=dict)

    def of(self, plugin: str, hook: str) -> Account:
        """Return the account of one plugin's hook."""
        return self.entries.setdefault((plugin, hook), Account())

    def tables(self) -> list[Table]:
        """Show the dearest first."""
        dearest = sorted(self.entries.items(), key=lambda item: -item[1].seconds)
        rows = [
            (plugin, hook, str(a.calls), str(a.failures), f"{a.seconds * 1000:.2f}") for (plugin, hook), a in dearest
        ]
        return [Table("", ("plugin", "hook", "calls", "failures", "ms"), rows)]


class Guard:
    """Wraps a plugin's hooks: an exception is told once, and after three the hook is not called again.

    What a hook prints goes to stderr: stdout is the command's; both streams are as before afterwards. Options and
    metrics are copies: what a hook changes in them neither the command sees nor another hook. Its time is accounted.
    """

    def __init__(self, plugin: str, accounts: Accounts) -> None:
        self._plugin = plugin
        self._accounts = accounts

    def __call__(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the guarded hook."""
        account = self._accounts.of(self._plugin, name)

        @functools.wraps(method)  # pluggy reads the names of the arguments through it
        def guarded(*arguments: Any) -> Any:
            if account.failures >= FAILURES_ALLOWED:
                return None
            account.calls += 1
            begun = time.perf_counter()
            try:
                with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(sys.stderr):
                    return method(*map(_own_copy, arguments))
            except KeyboardInterrupt:  # the user's
                raise
            except BaseException as error:
                account.failures += 1
                if account.failures == 1:
                    output.warn(f"hook {name} of plugin {self._plugin} failed: {one_line(error)}")
                return None
            finally:
                account.seconds += time.perf_counter() - begun

        return guarded
