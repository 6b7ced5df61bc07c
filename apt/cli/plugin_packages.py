"""``apt_model plugin try``, ``install`` and ``uninstall``."""

from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import ExitCode
from apt.console.typer_options import DryRunOption, JsonOption, QuietOption

Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Plugins, by any of their names."), Completes("plugin")
]
IndexOption = Annotated[
    str,
    typer.Option(
        "--index", metavar="FILE_OR_URL", help="A curated index of plugins; else that of APT_PLUGIN_INDEX, if set."
    ),
    Completes("file"),
]


@output.emits("apt.plugins.trying:TrialResult")
def try_plugins(
    names: Names,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600.0, help="Longest import waited for.")] = 5.0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Import foreign plugins in a child process, whatever was found before, and show what came of it.

    A plugin that raises, exits, crashes or hangs there is quarantined: it is not used until its files change or it
    passes a trial.

    \b
    Examples:
      apt_model plugin try greet
      apt_model plugin try greet hello --seconds 20

    \b
    Exit codes: 0 passed or not needed, 2 wrong call, 3 no such plugin, 10 a trial failed.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import trying

    result = trying.attempt(names, seconds=seconds)
    output.emit(result)
    return ExitCode.OK if result.passed else ExitCode.CHECK_FAILED


@output.emits("apt.plugins.installing:InstallResult")
def install(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Plugins by any of their names, or requirements, wheels, directories."),
        Completes("plugin", "file"),
    ],
    optional: Annotated[bool, typer.Option("--optional", help="Also what only adds something.")] = False,
    index: IndexOption = "",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Install what plugins need, or packages that bring plugins, by the pip of this Python.

    A package is looked at before it is installed: one that brings no plugin, or one that could not be used here, is
    refused. Afterwards its plugins are tried. torch, transformers and numpy are never replaced. --dry-run shows what
    pip would install and which plugins would come.

    \b
    Examples:
      apt_model plugin install huggingface-integration
      apt_model plugin install ollama --optional --dry-run
      apt_model plugin install ./my-plugin
      apt_model plugin install greet --index ./plugins.json

    \b
    Exit codes: 0 done, 1 pip failed, 2 wrong call, 3 no such plugin, 4 no plugin in it or one that cannot be used,
    6 no pip, 9 an index could not be reached, 10 installed, but a trial failed or a plugin is not usable.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import host, installing

    result = installing.install(names, optional=optional, dry_run=dry_run, index=index)
    output.emit(result)
    data = host.load()
    lacking = [] if dry_run else [p for n in result.plugins if not (p := data.plugin(n)).usable]
    for record in lacking:
        output.warn(f"plugin {record.name} is not ready: {record.reason}; mend it with: {record.mend}")
    return ExitCode.OK if result.passed and not lacking else ExitCode.CHECK_FAILED


@output.emits("apt.plugins.uninstalling:UninstallResult")
def uninstall(
    names: Names, dry_run: DryRunOption = False, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Remove plugins, also broken ones; no plugin is imported.

    A package is uninstalled by pip, with all plugins that it brings. A file of the plugin directory is moved to
    APT_HOME/removed-plugins, and the result says how to put it back.

    \b
    Examples:
      apt_model plugin uninstall greet
      apt_model plugin uninstall greet hello --dry-run

    \b
    Exit codes: 0 done, 1 pip failed, 2 wrong call or a built-in plugin, 3 no such plugin, 6 no pip, 8 cannot write.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import uninstalling

    output.emit(uninstalling.uninstall(names, dry_run=dry_run))
