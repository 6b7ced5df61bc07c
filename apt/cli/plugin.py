"""``apt_model plugin``: what is installed, what it lacks, and changing that. No plugin is imported here."""

from typing import Annotated

import typer

from apt.cli.plugin_new import new
from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import NotFoundError
from apt.console.typer_options import DryRunOption, JsonOption, QuietOption
from apt.plugins import host
from apt.plugins.core import PLANNED
from apt.plugins.records import PluginRecord

app = typer.Typer(help="List, describe, install, enable and disable plugins.", no_args_is_help=True)

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
    """
    output.configure(json=json, quiet=quiet)
    output.emit(host.current().data.plugin(name))


@app.command()
@output.emits("apt.plugins.dependencies:InstallResult")
def install(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Plugins by any of their names, or requirements, wheels, directories."),
        Completes("plugin", "file"),
    ],
    optional: Annotated[bool, typer.Option("--optional", help="Also what only adds something.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Install what plugins need, by the pip of this Python; torch, transformers and numpy are never replaced.

    A name that is no plugin here is given to pip as it stands: a package that brings a plugin.

    \b
    Examples:
      apt_model plugin install huggingface-integration
      apt_model plugin install ollama --optional --dry-run
      apt_model plugin install ./my-plugin
    """
    from apt.plugins import dependencies

    output.configure(json=json, quiet=quiet)
    plugins: list[str] = []
    requirements: list[str] = []
    for name in names:
        record = _known(name)
        if record is None:
            requirements.append(name)
            continue
        plugins.append(record.name)
        wanted = [*record.required_dependencies, *(record.optional_dependencies if optional else ())]
        requirements += [r for r in dependencies.missing(wanted) if r not in requirements]
    output.emit(dependencies.install(plugins, requirements, dry_run=dry_run))
    for name in plugins:
        record = host.load().plugin(name)
        if not dry_run and not record.usable:
            output.warn(f"plugin {name} is not ready: {record.reason}; mend it with: {record.mend}")


def _known(name: str) -> PluginRecord | None:
    """Return the plugin of that name; ``None`` for what is left to pip.

    :raises NotFoundError: for a name that was surely meant to be a plugin's: pip would fetch a stranger's package.
    """
    data = host.current().data
    try:
        return data.plugin(name)
    except NotFoundError as error:
        word = name.replace("_", "-").lower()
        for planned, others in PLANNED.items():
            if word in (planned, *others):
                raise NotFoundError(f"the plugin {planned} is not part of this version") from None
        if error.hint.startswith("did you mean"):
            hint = f"{error.hint} For a package of that name write {name}>=0"
            raise NotFoundError(error.message, hint=hint) from None
        return None


@app.command()
@output.emits("apt.plugins.records:PluginList")
def enable(names: DisabledNames, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Make disabled plugins usable again.

    \b
    Examples:
      apt_model plugin enable ollama
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
    """
    output.configure(json=json, quiet=quiet)
    output.emit(host.set_enabled(names, enabled=False))


app.command()(new)
