"""Shows what becomes of a plugin that was written for a later version: ``broken``, with the reason, never imported.

``api`` is the level of the plugin interface that the author used. It is read like all the rest, without running this
file, so that code which needs what is not there is not even tried.
"""

from types import SimpleNamespace

from apt.plugins.base import CommandRegistry, Plugin


class TooNewPlugin(Plugin):
    """Needs an interface that this version does not have."""

    name = "too-new"
    version = "1.0.0"
    author = "The apt_model authors"
    description = "needs a later version"
    api = 99

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare a command."""
        registry.add_command("too-new", self.show, help="Needs a later version.")

    def show(self, args: SimpleNamespace) -> None:
        """Print the level."""
        from apt.console import output

        output.emit_text(str(self.api))
