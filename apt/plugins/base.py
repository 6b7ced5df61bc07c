"""What a plugin is.

A plugin is a class derived from :class:`Plugin`. Declaring commands and components names them by target strings
(``"package.module:attribute"``), so that declaring imports nothing; what a command needs is imported when it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

#: Level of the plugin interface. A plugin that asks for a higher one is refused with a reason.
API: Final = 1


class CommandRegistry(Protocol):
    """What :meth:`Plugin.register_commands` is given."""

    def add_command(self, name: str, target: str | Callable[..., Any], help: str = "") -> None:
        """Declare a command.

        :param target: ``"package.module:attribute"`` of a ``typer.Typer`` (a group) or of an annotated function (a
            single command); or a callable, which is given one namespace of the options on the command line.
        :param help: one line for ``apt_model --help``.
        """
        ...


class ComponentRegistry(Protocol):
    """What :meth:`Plugin.register_components` is given."""

    def add_component(
        self, kind: str, name: str, target: str | Callable[..., Any], schema: str | type[Any] = "", summary: str = ""
    ) -> None:
        """Declare a component; see :class:`apt.registry.Component` and :data:`apt.registry.KINDS`."""
        ...


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a plugin's ``diagnostics`` hook found: shown by ``apt_model debug``."""

    check: str
    ok: bool
    message: str
    hint: str = ""


class Plugin:
    """Base of every plugin.

    Hooks of :mod:`apt.plugins.hookspecs` are implemented by defining a method of the hook's name.
    """

    #: Canonical name: letters, digits and dashes.
    name: ClassVar[str] = ""
    version: ClassVar[str] = ""
    author: ClassVar[str] = ""
    #: One line.
    description: ClassVar[str] = ""
    #: Level of this interface that the plugin was written for.
    api: ClassVar[int] = API
    #: Requirements (PEP 508) without which the plugin is not usable.
    required_dependencies: ClassVar[Sequence[str]] = ()
    #: Requirements that add something.
    optional_dependencies: ClassVar[Sequence[str]] = ()
    #: Canonical names of plugins that must be usable for this one to be.
    requires: ClassVar[Sequence[str]] = ()
    #: Canonical names of plugins beside which this one is not usable.
    conflicts: ClassVar[Sequence[str]] = ()

    def setup(self) -> None:
        """Get ready; called once in a process, before the first command or hook of the plugin."""

    def teardown(self) -> None:
        """Clean up; called when the process ends, if :meth:`setup` was."""

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare the plugin's commands; called when the index is built."""

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the plugin's components; called when the index is built."""
