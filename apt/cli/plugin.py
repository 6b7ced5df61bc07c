"""``apt_model plugin``: what is installed, what it lacks, and changing that. No plugin is imported here."""

from typing import Annotated

import typer

from apt.cli import plugin_looks, plugin_packages, plugin_sets
from apt.cli.plugin_new import new
from apt.console import output
from apt.console.completes import Completes
from apt.console.typer_options import JsonOption, QuietOption
from apt.plugins import host

app = typer.Typer(help="Plugins: list, install, write, try, lock, disable, remove.", no_args_is_help=True)

_NAMES = typer.Argument(metavar="NAME...", help="Plugins, by any of their names.")
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A plugin's name, its command's or its folder's."), Completes("plugin")
]
DisabledNames = Annotated[list[str], _NAMES, Completes("plugin:disabled")]
EnabledNames = Annotated[list[str], _NAMES, Completes("plugin:enabled")]


@app.command("list")
@output.emits("apt.plugins.records:PluginList")
def list_plugins(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show every plugin: its command, version, source and status, and what is missing.

    \b
    Examples:
      apt_model plugin list
      apt_model plugin list --json

    \b
    Exit codes: 0 shown, 2 wrong call.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(host.current().listing())


@app.command()
@output.emits("apt.plugins.records:PluginRecord")
def info(name: Name, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show all that is known of one plugin.

    \b
    Examples:
      apt_model plugin info huggingface
      apt_model plugin info model-pruning --json

    \b
    Exit codes: 0 shown, 2 wrong call, 3 no such plugin.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(host.current().data.plugin(name))


@app.command()
@output.emits("apt.plugins.records:PluginList")
def enable(names: DisabledNames, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Make disabled plugins usable again.

    \b
    Examples:
      apt_model plugin enable ollama

    \b
    Exit codes: 0 done, 2 wrong call, 3 no such plugin, 8 the state cannot be written.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(host.set_enabled(names, enabled=True))


@app.command()
@output.emits("apt.plugins.records:PluginList")
def disable(names: EnabledNames, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Keep plugins installed but unused; a plugin that cannot be loaded can be disabled too.

    \b
    Examples:
      apt_model plugin disable ollama

    \b
    Exit codes: 0 done, 2 wrong call, 3 no such plugin, 8 the state cannot be written.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(host.set_enabled(names, enabled=False))


app.command("try")(plugin_packages.try_plugins)
app.command("install")(plugin_packages.install)
app.command("uninstall")(plugin_packages.uninstall)
app.command("search")(plugin_looks.search)
app.command("doctor")(plugin_looks.doctor)
app.command("lock")(plugin_sets.lock)
app.command("sync")(plugin_sets.sync)
app.command()(new)
