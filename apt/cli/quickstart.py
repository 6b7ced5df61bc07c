"""``apt_model quickstart``: the whole main job on one model, by the shipped recipe of that name."""

from pathlib import Path
from typing import Annotated, Final

import typer

from apt import store
from apt.cli.run import ForceOption, execute
from apt.console import output
from apt.console.completes import Completes
from apt.console.settings import parse_settings
from apt.console.typer_options import DryRunOption, JsonOption, QuietOption

#: Steps of the recovery for any model but the embedded one. A trained model of 260,000 parameters was brought to 1.33
#: times its parent's perplexity by 60 steps, to 1.22 by 150, to 1.19 by 250.
OTHER_STEPS: Final = "200"


@output.emits("apt.recipes.results:RunResult", "apt.recipes.results:Plan")
def quickstart(
    model: Annotated[
        str,
        typer.Option(metavar="REF", help="A path, a name in the store, tiny, or hf:owner/name[@revision]."),
        Completes("model"),
    ] = store.EMBEDDED,
    text: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A .txt, .jsonl or .npz to calibrate, train and measure on; when absent, the embedded text for tiny, "
            "and text sampled from the model for any other.",
            show_default=False,
        ),
        Completes("choices:embedded,self", "file"),
    ] = "",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes."), Completes("directory")] = Path(
        "quickstart"
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="INPUT=VALUE", help="Give another input of the recipe.", show_default=False),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prune a model, recover it, prove it, export it as GGUF, back it up: offline, in a few minutes.

    Ends with the states side by side, and with report.html and report.json in DIR. Text that is sampled from the
    model tells how well the small model agrees with the large one, and the report says so.

    \b
    Examples:
      apt_model quickstart
      apt_model quickstart --model ./my-model --text my-text.txt --out ./my-run
      apt_model quickstart --model hf:owner/name --dry-run

    \b
    Exit codes: 0 every stage ended and every check passed, 3 no such model or text, 10 a check failed (the report is
    written nevertheless); else as apt_model run.
    """
    output.configure(json=json, quiet=quiet)
    from apt.recipes.catalog import find

    inputs = {**default_inputs(model), **({"text": text} if text else {}), **parse_settings(settings or ())}
    execute(find("quickstart"), inputs, out, force=force, dry_run=dry_run)


def default_inputs(model: str) -> dict[str, str]:
    """Return the recipe's inputs for a model.

    The recipe's defaults are made for the embedded one, which loses little by the cut and whose steps are dear.
    """
    inputs = {"model": model, "text": default_text(model)}
    return inputs if inputs["text"] == "embedded" else {**inputs, "steps": OTHER_STEPS}


def default_text(model: str) -> str:
    """Return the text for a model: the embedded one where its answers are known, else the model's own."""
    if model == store.EMBEDDED and store.resolve(model) == store.embedded_path():
        return "embedded"
    return "self"
