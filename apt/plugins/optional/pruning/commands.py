"""The command ``apt_model prune``."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.settings import parse_settings
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@output.emits(
    "apt.plugins.optional.pruning.result:PruneResult", "apt.plugins.optional.pruning.result:PrunePreview",
    "apt.plugins.optional.pruning.strategies.dependency_graph:GraphResult",
)  # fmt: skip
def prune(
    model: Annotated[
        str, typer.Argument(help="A path, a name in the store, hf:owner/name, or tiny."), Completes("model")
    ],
    output_path: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the pruned checkpoint."), Completes("directory")
    ],
    strategy: Annotated[
        str,
        typer.Option(help="structured (smaller, faster), or a mask (zeros only: same size, same speed)."),
        Completes("component:strategy"),
    ] = "structured",
    ratio: Annotated[
        float | None,
        typer.Option(help="Share of the decoder's linear weights to remove [default: 0.25].", show_default=False),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="N:M", help="Instead: keep N of every M weights, such as 2:4; masks only."),
        Completes("choices:2:4,4:8"),
    ] = None,
    target_params: Annotated[
        str | None, typer.Option(metavar="N", help="Instead: parameters to keep at most: 700M, 1.2B, 70%, 0.7x.")
    ] = None,
    target_bytes: Annotated[
        str | None, typer.Option(metavar="N", help="Instead: bytes of weight files at most: 3GiB, 70%, 0.7x.")
    ] = None,
    target_speed: Annotated[
        float | None, typer.Option(metavar="X", help="Instead: at least so many times the measured decode speed.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="embedded, self (sampled from the model), or a .txt, .jsonl or .npz [default: self; tiny: embedded].",
        ),
        Completes("choices:embedded,self", "file"),
    ] = None,
    heldout: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A text to measure on; by default held out of --calibration."),
        Completes("choices:embedded,self", "file"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to calibrate on, and to measure on, at most.")] = 16384,
    effort: Annotated[
        str,
        typer.Option(help="light: nothing is fitted; fast: least squares; full: whole blocks are refitted, slower."),
        Completes("choices:light,fast,full"),
    ] = "fast",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the strategy.", show_default=False),
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="Then train it on the dense model's predictions: kd, or a training config."
        ),
        Completes("choices:kd", "file"),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Layer by layer from the files, for a model larger than the memory.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.")] = 0,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure prefill and decode speed.")] = True,
    json: JsonOption = False,
    quiet: QuietOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Remove layers, KV groups and ff channels from a model and fit the rest again, or set weights to zero.

    The output is a stock checkpoint: plain from_pretrained loads it. Without a goal a quarter of the decoder's linear
    weights goes. The result states exact sizes, the perplexity on text that was not fitted on, and the measured
    speed, before and after. What cannot be met is refused with the nearest that can.

    \b
    Examples:
      apt_model prune tiny -o ./tiny-25
      apt_model prune ./model -o ./smaller --ratio 0.4 --calibration text.txt --json
      apt_model prune ./model -o ./smaller --target-params 70% --effort full
      apt_model prune ./model -o ./smaller --effort light --stream --calibration text.txt
      apt_model prune ./model -o ./recovered --recover recover.yaml --calibration text.txt
      apt_model prune ./model -o ./masked --strategy sparsegpt --pattern 2:4 --no-speed
      apt_model prune ./model -o ./masked --strategy reconstruct --ratio 0.5 --effort fast --no-speed
      apt_model prune ./model -o ./ticket --strategy lottery --ratio 0.5 --set rounds=2 --set steps=12
      apt_model prune hf:Qwen/Qwen2.5-0.5B -o ./qwen-25 --target-bytes 0.8x --dry-run

    \b
    Exit codes: 0 pruned, 1 a guard stopped the training, 2 wrong call, 3 no such model, text, strategy or recipe, 4 a
    corrupted model or text, 5 the architecture is not covered, the goal cannot be met or the memory does not suffice,
    6 torch-pruning is missing, 7 the output exists, 8 it cannot be written, 10 what was written does not compute what
    was cut.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.optional.pruning import operation
    from apt.plugins.optional.pruning.options import PruneOptions

    options = PruneOptions.of_command(
        model=model, output=output_path, strategy=strategy, ratio=ratio, pattern=pattern, target_params=target_params,
        target_bytes=target_bytes, target_speed=target_speed, calibration=calibration, heldout=heldout, tokens=tokens,
        effort=effort, settings=parse_settings(settings or (), "NAME"), recover=recover, stream=stream, seed=seed,
        speed=speed, overwrite=overwrite,
    )  # fmt: skip
    output.emit(operation.preview(options) if dry_run else operation.prune(options))
