"""The command ``apt_model prune``."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@output.emits("apt.plugins.optional.pruning.result:PruneResult", "apt.plugins.optional.pruning.result:PrunePreview")
def prune(
    model: Annotated[
        str, typer.Argument(help="A path, a name in the store, hf:owner/name, or tiny."), Completes("model")
    ],
    output_path: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the pruned checkpoint."), Completes("directory")
    ],
    strategy: Annotated[
        str,
        typer.Option(help="structured (smaller, faster) or magnitude (zeros only)."),
        Completes("component:strategy"),
    ] = "structured",
    ratio: Annotated[float, typer.Option(help="Share of the decoder's linear weights to remove.")] = 0.25,
    calibration: Annotated[
        str,
        typer.Option(help="embedded, self (sampled from the model), or a .txt, .jsonl or .npz; tiny: embedded."),
        Completes("choices:embedded,self", "file"),
    ] = "",
    effort: Annotated[
        str,
        typer.Option(help="fast: least squares; full: every matrix of a block is refitted, several times slower."),
        Completes("choices:fast,full"),
    ] = "fast",
    json: JsonOption = False,
    quiet: QuietOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Remove layers, KV groups and ff channels from a model and fit the rest again, without training.

    The output is a stock checkpoint: plain from_pretrained loads it. Which mix of depth and width goes is decided by
    the measured loss of every legal mix; the result states the exact share, sizes and perplexities.

    Examples:
        apt_model prune tiny -o ./tiny-25

        apt_model prune ./model -o ./smaller --ratio 0.4 --calibration text.txt --json

        apt_model prune hf:Qwen/Qwen2.5-0.5B -o ./qwen-25 --dry-run
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.optional.pruning import operation
    from apt.plugins.optional.pruning.options import PruneOptions

    options = PruneOptions.of_command(
        model=model,
        output=output_path,
        strategy=strategy,
        ratio=ratio,
        calibration=calibration or ("embedded" if model == "tiny" else "self"),
        effort=effort,
        overwrite=overwrite,
    )
    output.emit(operation.preview(options) if dry_run else operation.prune(options))
