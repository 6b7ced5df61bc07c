"""``apt_model distill``: options → operation → output."""

from pathlib import Path
from typing import Annotated, Any

import typer

from apt.console import output as console
from apt.console.completes import Completes
from apt.console.errors import UsageError
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@console.emits(
    "apt.plugins.optional.distillation.results:DistillResult", "apt.plugins.optional.distillation.results:DistillPlan"
)
def distill(
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="The model to learn from."), Completes("model")],
    student: Annotated[
        str, typer.Option(metavar="MODEL", help="The model to train; it is not changed."), Completes("model")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to; by default a name in the store."),
        Completes("directory"),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="embedded, self, or a .txt, .jsonl or .npz file to train on."),
        Completes("choices:embedded,self", "file"),
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A text to measure on; by default held out of --text."),
        Completes("choices:embedded,self", "file"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps [default: 200].")] = None,
    seconds: Annotated[float | None, typer.Option(help="As many steps as fit in this time instead.")] = None,
    divergence: Annotated[
        str,
        typer.Option(help="forward_kl, reverse_kl, jsd, skew_kl or tvd."),
        Completes("choices:forward_kl,reverse_kl,jsd,skew_kl,tvd"),
    ] = "forward_kl",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the divergence; cross-entropy has the rest [default: 0.9].")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Divides both sides' logits.")] = 1.0,
    optimizer: Annotated[str, typer.Option(help="muon or adamw."), Completes("choices:muon,adamw")] = "muon",
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; by default the optimizer's own.")] = None,
    batch_rows: Annotated[int, typer.Option(help="Rows a step.")] = 8,
    window: Annotated[int, typer.Option(help="Tokens a row.")] = 256,
    seed: Annotated[int, typer.Option(help="Order of the rows.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16."), Completes("choices:auto,fp32,bf16")] = "auto",
    control: Annotated[
        bool, typer.Option("--control", help="Also train on cross-entropy alone, for equal steps.")
    ] = False,
    keep_run: Annotated[bool, typer.Option("--keep-run", help="Leave the run directory when done.")] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a student on its teacher's predictions and write its best checkpoint.

    \b
    Examples:
      apt_model distill --teacher tiny --student ./pruned -o ./recovered
      apt_model distill --teacher ./big --student ./small -o ./out --text notes.jsonl --steps 500
      apt_model distill --teacher tiny --student ./pruned -o ./recovered --seconds 60 --control --json
    """
    console.configure(json=json, quiet=quiet)
    from apt.plugins.optional.distillation import operation

    options = _options(
        teacher=teacher, student=student, output=output, text=text, heldout=heldout, steps=steps, seconds=seconds,
        divergence=divergence, alpha=alpha, temperature=temperature, optimizer=optimizer, lr=lr,
        batch_rows=batch_rows, window=window, seed=seed, precision=precision, control=control, keep_run=keep_run,
        overwrite=overwrite,
    )  # fmt: skip
    console.emit(operation.plan(options) if dry_run else operation.distill(options))


def _options(**given: Any) -> Any:
    """Build the options, leaving out what was not given.

    :raises UsageError: naming the option that is not right.
    """
    from pydantic import ValidationError

    from apt.plugins.optional.distillation.options import DistillOptions, default_output

    if given["output"] is None:
        given["output"] = default_output(given["student"])
    try:
        return DistillOptions(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{name}: {first['msg'].lower()}, got {first['input']!r}") from None
