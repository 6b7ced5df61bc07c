"""``apt_model run``: a recipe, step by step; what is done and unchanged is not done again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.settings import parse_settings
from apt.console.typer_options import DryRunOption, JsonOption, QuietOption

ForceOption = Annotated[bool, typer.Option("--force", help="Run every step, also what is done and unchanged.")]


@output.emits("apt.recipes.results:RunResult", "apt.recipes.results:Plan")
def run(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe."),
        Completes("choices:quickstart", "file"),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="INPUT=VALUE", help="Give an input of the recipe.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where everything goes; ./NAME when absent.", show_default=False),
        Completes("directory"),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe: steps of plugin operations, chained by name.

    The recipe is checked as a whole before anything runs; a fault is told with file and line. A step whose inputs,
    options, source and libraries are unchanged is not run again, so a killed run goes on where it was.

    \b
    Examples:
      apt_model run quickstart --dry-run
      apt_model run quickstart --set model=./my-model --set text=my.txt --out ./my-run
      apt_model run my-recipe.yaml --set ratio=0.3 --json

    \b
    Exit codes: 0 done, 2 a fault in the recipe or the call, 3 an input is missing, 7 a target exists that the recipe
    did not make, 10 a step's check or expectation failed; else the code of the step that failed.
    """
    output.configure(json=json, quiet=quiet)
    from apt.recipes.catalog import find

    path = find(recipe)
    execute(path, parse_settings(settings or ()), out or Path(path.stem), force=force, dry_run=dry_run)


def execute(path: Path, settings: Mapping[str, str], out: Path, *, force: bool, dry_run: bool) -> None:
    """Run or plan a recipe with the operations that are installed, and show the result."""
    from apt.plugins import host
    from apt.recipes.engine import Engine, ExpectationError

    engine = Engine(path, host.current().registry(), settings=settings, out=out)
    if dry_run:
        output.emit(engine.plan(force=force))
        return
    try:
        output.emit(engine.run(force=force))
    except ExpectationError as error:
        if error.result is not None and not output.json_requested():
            output.emit(error.result)  # what was found is worth as much as that it was not enough
        raise
