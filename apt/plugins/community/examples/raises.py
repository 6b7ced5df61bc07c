"""Shows what becomes of a plugin that raises when it is imported: its command ends in one line, nothing else notices.

It is listed, with its command, as ``untried``. The first use tries it in a child process; the exception is kept as the
reason of its quarantine, and nothing of it is imported again until this file changes or ``plugin try raises`` is given.
"""

from types import SimpleNamespace

from apt.plugins.base import CommandRegistry, Plugin

LIMITS = {"small": 1}
LIMIT = LIMITS["large"]  # a KeyError: the fault that this file is about


class RaisesPlugin(Plugin):
    """Would print a limit."""

    name = "raises"
    version = "1.0.0"
    author = "The apt_model authors"
    description = "cannot be imported"

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare a command that is listed although it cannot run."""
        registry.add_command("raises", self.show, help="Cannot run.")

    def show(self, args: SimpleNamespace) -> None:
        """Print the limit."""
        from apt.console import output

        output.emit_text(str(LIMIT))
