"""Asking a plugin what it is: its class, its metadata, its commands, components and hooks, as plain values.

Foreign plugins are asked in a child process, see :mod:`apt.plugins.trial`; of the built-in ones the index knows what
their source says (:mod:`apt.plugins.source`), and a test holds that it is the same.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from apt.console.errors import BadInputError, UnsupportedError
from apt.plugins import dropins
from apt.plugins.base import API, Plugin
from apt.plugins.completion_words import harmless
from apt.plugins.manifest import NAME, TARGET
from apt.registry import KINDS, did_you_mean


class Declarations:
    """Records what a plugin registers; the ``registry`` of ``register_commands`` and ``register_components``."""

    def __init__(self) -> None:
        self.commands: dict[str, tuple[str | Callable[..., Any], str]] = {}
        self.components: list[dict[str, str]] = []

    def add_command(self, name: str, target: str | Callable[..., Any], help: str = "") -> None:
        """See :class:`apt.plugins.base.CommandRegistry`."""
        if not NAME.fullmatch(name):
            raise BadInputError(f"bad command name {name!r}: letters, digits and dashes")
        if name in self.commands:
            raise BadInputError(f"command {name!r} is registered twice")
        if not callable(target):
            _check_target(target)
        self.commands[name] = (target, _one_line(help))

    def add_component(
        self, kind: str, name: str, target: str | Callable[..., Any], schema: str | type[Any] = "", summary: str = ""
    ) -> None:
        """See :class:`apt.plugins.base.ComponentRegistry`."""
        if not isinstance(name, str) or not harmless(name):
            raise BadInputError(f"bad component name {name!r}")
        if kind not in KINDS:
            raise BadInputError(f"unknown component kind {kind!r}", hint=did_you_mean(kind, KINDS))
        found = {
            "target": _as_target(target),
            "schema": _as_target(schema) if schema else "",
            "summary": _one_line(summary),
        }
        self.components.append({"kind": kind, "name": name, **found})


def _check_target(target: object) -> None:
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise BadInputError(f"bad target {target!r}: expected 'package.module:attribute'")


def _as_target(target: object) -> str:
    """Return the string that names a module-level object."""
    if callable(target):
        target = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
    _check_target(target)
    return str(target)


def _one_line(text: object) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def load_class(target: str) -> type[Plugin]:
    """Import a plugin's class.

    :param target: ``"module:Class"``; without a class, the first plugin class that the module defines.
    :raises BadInputError: when there is none.
    """
    module_name, _, attribute = target.partition(":")
    if module_name.startswith(f"{dropins.DROPINS}."):
        dropins.let_in(module_name)
    module = importlib.import_module(module_name)
    if attribute:
        found = getattr(module, attribute, None)
        if isinstance(found, type) and issubclass(found, Plugin):
            return found
        raise BadInputError(f"{target} is not a class derived from apt.plugins.base.Plugin")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Plugin) and value.__module__ == module.__name__:
            return value
    raise BadInputError(f"{module_name} defines no class derived from apt.plugins.base.Plugin")


def describe(plugin_class: type[Plugin]) -> dict[str, Any]:
    """Let a plugin's class register, and return what it declared as JSON values.

    :raises Exception: whatever the plugin raises.
    """
    from apt.plugins import hooks

    metadata = _metadata(plugin_class)
    if metadata["api"] > API:
        raise UnsupportedError(f"needs plugin interface {metadata['api']}; this apt_model has {API}")
    declarations = Declarations()
    implemented = hooks.register(plugin_class(), declarations)
    commands = [
        {"name": name, "target": found if isinstance(found, str) else "", "help": text or metadata["description"]}
        for name, (found, text) in declarations.commands.items()
    ]
    return {
        **metadata,
        "class": f"{plugin_class.__module__}:{plugin_class.__qualname__}",
        "commands": commands,
        "components": declarations.components,
        "hooks": sorted(implemented),
    }


def _metadata(plugin_class: type[Plugin]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in ("name", "version", "author", "description"):
        value = getattr(plugin_class, field)
        if not isinstance(value, str):
            raise BadInputError(f"{plugin_class.__name__}.{field} is not a string")
        found[field] = _one_line(value)
    if not NAME.fullmatch(found["name"]):
        raise BadInputError(f"bad plugin name {found['name']!r}: letters, digits and dashes")
    for field in ("required_dependencies", "optional_dependencies", "requires", "conflicts"):
        found[field] = _strings(plugin_class, field)
    if type(plugin_class.api) is not int:
        raise BadInputError(f"{plugin_class.__name__}.api is not a whole number")
    found["api"] = plugin_class.api
    return found


def _strings(plugin_class: type[Plugin], field: str) -> list[str]:
    value = getattr(plugin_class, field)
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise BadInputError(f"{plugin_class.__name__}.{field} is not a list of strings")
    return list(value)
