"""``apt_model plugin new``: a plugin of one's own, from a template."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.errors import UsageError
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@output.emits("apt.plugins.scaffold:NewPlugin")
def new(
    name: Annotated[str, typer.Argument(help="Letters, digits and dashes; also its command's name.")],
    output_path: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory that appears; ./NAME when absent.")
    ] = None,
    drop_in: Annotated[
        bool, typer.Option("--drop-in", help="One file in your plugin directory instead of a package.")
    ] = False,
    description: Annotated[str, typer.Option(help="One line that says what it does.")] = "",
    author: Annotated[str, typer.Option(help="Who writes it.")] = "",
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a plugin to start from: a command, a component, a hook, tests that pass and a README.

    A package is installed by `apt_model plugin install DIR`; a drop-in file works at once.

    \b
    Examples:
      apt_model plugin new my-schedule
      apt_model plugin new my-schedule -o ./work/my-schedule --description "Falls with the square root."
      apt_model plugin new my-schedule --drop-in

    \b
    Exit codes: 0 written, 2 wrong call or a name that is taken, 7 the output exists, 8 it cannot be written.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import scaffold

    if drop_in and output_path is not None:
        raise UsageError("--drop-in writes into the plugin directory; it goes without --output")
    if drop_in:
        made = scaffold.create_dropin(
            name, description=description, author=author, overwrite=overwrite, dry_run=dry_run
        )
    else:
        made = scaffold.create_package(
            name, output_path, description=description, author=author, overwrite=overwrite, dry_run=dry_run
        )
    output.emit(made)
