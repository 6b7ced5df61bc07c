"""``apt_model completion``: what the Tab key offers, for bash, zsh and fish."""

from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@output.emits("apt.plugins.completion_scripts:Script", "apt.plugins.completion_scripts:Installed")
def completion(
    shell: Annotated[
        str | None,
        typer.Argument(metavar="[SHELL]", help="bash, zsh or fish; that of $SHELL when absent.", show_default=False),
        Completes("choices:bash,zsh,fish"),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Write the script where the shell looks for it.")] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the completion script of a shell, or install it.

    Commands, options, their values, plugins, components and models are completed, from the index of what is installed:
    no plugin is imported at a press of the Tab key. Nothing but the script's own file is written.

    \b
    Examples:
      apt_model completion bash
      apt_model completion fish --install
      apt_model completion zsh --install --dry-run --json

    \b
    Exit codes: 0 printed or written, 2 no script for that shell, 7 a file of somebody else is there, 8 cannot write.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import completion_scripts as library

    wanted = library.shell_of(shell)
    if install or dry_run:
        output.emit(library.install(wanted, overwrite=overwrite, dry_run=dry_run))
        return
    script = library.script(wanted)
    if json:
        output.emit(script)
    else:
        output.emit_text(script.text.rstrip("\n"))
