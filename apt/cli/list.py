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
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="name, place, architecture, parameters, size or age; a tree when absent.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="TEXT", help="Words with TEXT, or field=value; all must hold.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the models of the store, of the caches of Hugging Face and Ollama, and of given directories.

    What was made here stands under what it was made of. A model that cannot be read is listed with the reason.
    Without any model the list is empty. --filter looks at name, place, format, architecture, operation and parent.

    \b
    Examples:
      apt_model list
      apt_model list ./checkpoints --json
      apt_model list --sort size --filter format=gguf
      apt_model list --filter llama

    \b
    Exit codes: 0 listed, 2 wrong call, 3 no such directory.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(listing.list_models(directories or (), sort=sort, filters=filters or ()))
