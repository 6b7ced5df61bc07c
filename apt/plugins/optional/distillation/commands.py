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
        str | None, typer.Option(metavar="MODEL", help="The model to train; it is not changed."), Completes("model")
    ] = None,
    student_shape: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="Instead: one made of the teacher, 0.5x or layers=4,hidden=256,ff=512."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to; by default a name in the store."),
        Completes("directory"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="The whole run in a file; options of the run are then not given."),
        Completes("file"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Capture the teacher's predictions there once, and train from them."),
        Completes("directory"),
    ] = None,
    cache_top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Likeliest ids of each token that the cache holds [default: 128].")
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
    strategy: Annotated[
        str | None,
        typer.Option(help="response, feature, relation or mixed [default: response]."),
        Completes("choices:response,feature,relation,mixed"),
    ] = None,
    on_policy: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of the rows that the student writes itself.")
    ] = None,
    divergence: Annotated[
        str | None,
        typer.Option(help="forward_kl, reverse_kl, jsd, skew_kl or tvd [default: forward_kl]."),
        Completes("choices:forward_kl,reverse_kl,jsd,skew_kl,tvd"),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Weight of the distillation; cross-entropy has the rest [default: 0.9; 0.5 for some]."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides both sides' logits [default: 1].")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="muon or adamw [default: muon]."), Completes("choices:muon,adamw")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; by default the optimizer's own.")] = None,
    batch_rows: Annotated[int | None, typer.Option(help="Rows a step [default: 8].")] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens a row [default: 256, or the context where that is less].")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the rows [default: 0].")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32 or bf16 [default: auto]."), Completes("choices:auto,fp32,bf16")
    ] = None,
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
      apt_model distill --teacher ./big --student-shape 0.5x -o ./half --strategy mixed
      apt_model distill --teacher ./big --student ./small -o ./out --config training.yaml
    """
    console.configure(json=json, quiet=quiet)
    from apt.plugins.optional.distillation import operation

    options = _options(
        teacher=teacher, student=student, student_shape=student_shape, output=output, config=config, cache=cache,
        cache_top_k=cache_top_k,
        text=text, heldout=heldout, steps=steps, seconds=seconds, strategy=strategy, on_policy=on_policy,
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
        given["output"] = default_output(given["student"] or given["teacher"])
    try:
        return DistillOptions(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{name}: {first['msg'].lower()}, got {first['input']!r}") from None
