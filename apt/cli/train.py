"""``apt_model train``: a run by its config; flags name models, outputs and targets."""

import os
from pathlib import Path
from typing import Annotated

import typer

from apt.console import output as console
from apt.console.completes import Completes
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@console.emits("apt.training.report:TrainReport", "apt.training.report:TrainPlan")
def train(
    config: Annotated[
        str,
        typer.Option("--config", metavar="YAML", help="The whole run: a file, or the name of a shipped config."),
        Completes("file"),
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to train; the config's when absent.", show_default=False),
        Completes("model"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to learn from; the config's when absent.", show_default=False),
        Completes("model"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to; a name in the store when absent."),
        Completes("directory"),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the run's state is kept; .NAME.run beside the output when absent.",
            show_default=False,
        ),
        Completes("directory"),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A key, as train.steps, in which a run that goes on may differ; may be given again.",
            show_default=False,
        ),
    ] = None,
    keep_run: Annotated[bool, typer.Option("--keep-run", help="Leave the saved states when done.")] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a model as a config says and write the weights of its best evaluation.

    The config is checked as a whole before any weight is read; every fault is told with file and line. A killed call
    that is given again goes on from its last saved state. Beside the weights lie training.yaml, which runs again as it
    is, and apt.json with the figures. Under torchrun, each process trains a share of every step.

    \b
    Examples:
      apt_model train --config my_run.yaml
      apt_model train --config my_run.yaml --model tiny -o ./trained --dry-run
      apt_model train --config my_run.yaml --model ./my-model -o ./trained --allow-change train.steps --json

    \b
    Exit codes: 0 trained, 1 a guard stopped the run, 2 a fault in the config or the call, 3 no such model or text,
    4 corrupted files, 5 not supported (another tokenizer's teacher, fsdp2 in one process), 6 a library is missing,
    7 the output exists, 8 it cannot be written.
    """  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"  # torchrun starts one process after another of the same call
    console.configure(json=json and first, quiet=quiet or not first)
    from apt.plugins import host
    from apt.training import catalog, job

    registry = host.current().registry()
    given = {"config": catalog.find(config), "model": model, "teacher": teacher}
    options = job.TrainOptions.of_command(
        **given,
        output=output or job.output_of(given, registry),
        run_dir=run_dir,
        allow_change=tuple(allow_change or ()),
        keep_run=keep_run,
        overwrite=overwrite,
    )
    result = job.plan(options, registry) if dry_run else job.train(options, registry)
    if first:
        console.emit(result)
