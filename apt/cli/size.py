"""``apt_model size``: where a model's bytes are."""

from typing import Annotated

import typer

from apt.checkpoint import size_report
from apt.cli.arguments import ModelArgument
from apt.console import output
from apt.console.errors import UsageError
from apt.console.typer_options import JsonOption, QuietOption
from apt.console.units import parse_bytes


@output.emits("apt.checkpoint.size_report:SizeFacts")
def size(
    model: ModelArgument,
    context: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1 << 30, help="A context of the memory table; may be repeated.", show_default=False),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1 << 20, help="A batch of the memory table; may be repeated.", show_default=False),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Say what fits: 24GiB, 80GB, or bytes.", show_default=False)
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the bytes of a model by component, dtype and layer, its sizes as GGUF, and the memory it needs.

    All from headers. Sizes of K-quants follow llama.cpp's mixtures without an importance matrix. int8 is Q8_0 and
    q4 is Q4_K_M. Memory is that of weights and fp16 cache; activations come on top.

    \b
    Examples:
      apt_model size tiny
      apt_model size ./my-model --memory 24GiB
      apt_model size ./my-model --context 8192 --context 32768 --batch 1 --batch 16
      apt_model size my-model.gguf --json

    \b
    Exit codes: 0 shown, 2 wrong call, 3 no such model, 4 corrupted files, 5 a format not supported.
    """
    output.configure(json=json, quiet=quiet)
    try:
        limit = None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise UsageError(f"--memory: {error}", hint="write it as 24GiB, 80GB, or bytes") from None
    output.emit(size_report.size_facts(model, contexts=context or (), batches=batch or (), memory_bytes=limit))
