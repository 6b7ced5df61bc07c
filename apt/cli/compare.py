"""``apt_model compare``: models beside one another on the same text."""

from typing import Annotated

import typer

from apt.cli.arguments import BatchRowsOption, MaxRowsOption, WindowOption
from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import UsageError
from apt.console.typer_options import JsonOption, QuietOption


@output.emits("apt.evaluation.results:CompareResult")
def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL MODEL...", help="The first is what others are measured by."),
        Completes("model"),
    ],
    text: Annotated[
        str,
        typer.Option(help="embedded, self (text of the first model), or a .txt, .jsonl or .npz file."),
        Completes("choices:embedded,self", "file"),
    ] = "embedded",
    max_rows: MaxRowsOption = None,
    window: WindowOption = None,
    batch_rows: BatchRowsOption = 8,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure prefill and decode speed.")] = True,
    dtype: Annotated[
        str, typer.Option(help="Compute in float32, or as each model is stored."), Completes("choices:float32,stored")
    ] = "float32",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare models: size, speed, perplexity with interval, KL to and top-1 agreement with the first.

    The perplexity ratio is a paired bootstrap over the rows: an interval without 1 is a difference beyond chance.
    Models with another tokenizer are compared by bits per byte.

    \b
    Examples:
      apt_model compare tiny ./pruned ./recovered
      apt_model compare ./a ./b --text heldout.txt --no-speed --json

    \b
    Exit codes: 0 compared, 2 wrong call, 3 no such model or text, 4 corrupted or incomparable, 5 not supported (GGUF).
    """
    output.configure(json=json, quiet=quiet)
    if len(models) < 2:
        raise UsageError("compare needs two models at least", hint="apt_model compare A B")
    if dtype not in ("float32", "stored"):
        raise UsageError(f"--dtype {dtype!r} is not known", hint="float32 or stored")
    from apt.evaluation.operations import CompareOptions, compare

    output.emit(
        compare(
            CompareOptions.model_validate(
                {
                    "models": models,
                    "text": text,
                    "window": window,
                    "max_rows": max_rows,
                    "batch_rows": batch_rows,
                    "speed": speed,
                    "dtype": dtype,
                }
            )
        )
    )
