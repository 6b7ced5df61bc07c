"""``apt_model visualize``: a model, a run or a result as charts on one page."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.typer_options import JsonOption, OverwriteOption, QuietOption


@output.emits("apt.report.visualize:Visualization")
def visualize(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|REPORT|MODEL",
            help="A model; a training run's directory; or a JSON file of report, compare or a training.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write; <name>.html here if left out.", show_default=False
        ),
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="One picture in place of a page; needs matplotlib.")] = False,
    lang: Annotated[
        str | None,
        typer.Option("--lang", help="en or zh-CN; the language of messages when absent.", show_default=False),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw a model's weights layer by layer, a run's curves, or a comparison, as one offline HTML page.

    A model shows parameters by component and type, the magnitude and the stable rank of its matrices over the layers,
    and its outliers. The page holds no script and requests nothing; each mark carries its value, and --json gives the
    same figures. The weights are read from the files, without torch.

    \b
    Examples:
      apt_model visualize tiny
      apt_model visualize ./my-run -o curves.html
      apt_model visualize comparison.json --lang zh-CN
      apt_model visualize ./my-model --png

    \b
    Exit codes: 0 drawn, 2 wrong call, 3 no such target, 4 damaged or nothing to draw, 6 no matplotlib for --png,
    7 the output exists, 8 it cannot be written.
    """
    output.configure(json=json, quiet=quiet)
    from apt.report.visualize import visualize as draw

    output.emit(draw(target, output=out, png=png, lang=lang, overwrite=overwrite))
