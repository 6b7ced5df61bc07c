"""``apt_model list``: which models are there."""

from pathlib import Path
from typing import Annotated

import typer

from apt.checkpoint import listing
from apt.console import output
from apt.console.completes import Completes
from apt.console.typer_options import JsonOption, QuietOption


@output.emits("apt.checkpoint.listing:ModelList")
def list_models(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIRECTORY]...", help="Directories to list too.", show_default=False),
        Completes("directory"),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the models of the store, the Hugging Face cache and given directories: names, sizes, what made them.

    A model that cannot be read is listed with the reason. Without any model the list is empty.

    \b
    Examples:
      apt_model list
      apt_model list ./checkpoints --json

    \b
    Exit codes: 0 listed, 2 wrong call, 3 no such directory.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(listing.list_models(directories or ()))
