"""``apt_model compare``: models beside one another on the same text."""

from pathlib import Path
from typing import Annotated

import typer

from apt.cli.arguments import BatchRowsOption, MaxRowsOption, WindowOption
from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import TargetExistsError, UsageError
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
    task: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A .jsonl of items that all answer; may be given again.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write one offline page.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare models: size, memory, speed, perplexity, KL to and top-1 agreement with the first, tasks.

    Every figure is tested against the first model's, item by item (paired bootstrap, McNemar), corrected for the number
    of tests (Holm), with the least difference that could have been found. Models with another tokenizer are compared by
    bits per byte. A GGUF runs in llama.cpp where that is installed, else on its values taken back to floats.

    \b
    Examples:
      apt_model compare tiny ./pruned ./recovered
      apt_model compare ./a ./b --text heldout.txt --no-speed --json
      apt_model compare ./my-model my-model.gguf --task questions.jsonl --html compare.html

    \b
    Exit codes: 0 compared, 2 wrong call, 3 no such model, text or task, 4 corrupted or incomparable, 5 a GGUF that
    cannot be run, 7 the page exists, 8 it cannot be written.
    """
    output.configure(json=json, quiet=quiet)
    if len(models) < 2:
        raise UsageError("compare needs two models at least", hint="apt_model compare A B")
    if dtype not in ("float32", "stored"):
        raise UsageError(f"--dtype {dtype!r} is not known", hint="float32 or stored")
    if html is not None and html.exists() and not overwrite:
        raise TargetExistsError(f"{html} exists already", hint="choose another file or give --overwrite")
    from apt.evaluation.operations import CompareOptions, compare
    from apt.plugins import host

    result = compare(
        CompareOptions.model_validate(
            {
                "models": models,
                "text": text,
                "window": window,
                "max_rows": max_rows,
                "batch_rows": batch_rows,
                "speed": speed,
                "dtype": dtype,
                "tasks": tuple(task or ()),
            }
        ),
        host.current().registry(),
    )
    if html is not None:
        from apt.report.comparison import write_comparison

        write_comparison(result, html, overwrite=overwrite)
    output.emit(result)
