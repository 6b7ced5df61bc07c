"""A plugin in one file: copy it into the plugin directory and change it."""

from types import SimpleNamespace

from apt.plugins.base import CommandRegistry, ComponentRegistry, Diagnosis, Plugin


class MyPlugin(Plugin):
    """Says hello, brings a learning-rate schedule, and looks after itself."""

    name = "my-plugin"
    version = "0.1.0"
    author = "you"
    description = "Says hello."
    # Requirements as pip takes them; `apt_model plugin install my-plugin` installs those that are missing.
    required_dependencies = ()
    optional_dependencies = ()

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare the commands; import nothing heavy here or at the top of the file."""
        registry.add_command("my-command", self.my_command, help="Say hello.")

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare what configs may choose by name."""
        registry.add_component("scheduler", "my-constant", constant, summary="the learning rate as it is")

    def my_command(self, args: SimpleNamespace) -> None:
        """Say hello to --name; `args` holds the options given and the other words in `args.positional`."""
        from apt.console import output

        output.emit_text(f"hello {getattr(args, 'name', 'world')}")

    def diagnostics(self) -> list[Diagnosis]:
        """Tell `apt_model debug` how the plugin is."""
        return [Diagnosis("my-plugin", True, "says hello")]


def constant(step: int, config: object) -> float:
    """Return the factor of the learning rate at an optimizer step."""
    return 1.0
