"""Arguments and options that several built-in commands share."""

from typing import Annotated

import typer

from apt.console.completes import Completes

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A path, a name in the store, tiny, or hf:owner/name[@revision]."),
    Completes("model"),
]
MaxRowsOption = Annotated[
    int | None, typer.Option(min=1, help="Score so many rows at most, spread over the text.", show_default=False)
]
WindowOption = Annotated[
    int | None, typer.Option(min=2, help="Tokens a row; the context, at most 512, when absent.", show_default=False)
]
BatchRowsOption = Annotated[int, typer.Option(min=1, help="Rows scored side by side.")]
