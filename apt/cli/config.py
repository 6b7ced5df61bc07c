"""``apt_model config``: the training configs that are shipped, copies of them, and what is wrong with one."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import ExitCode
from apt.console.typer_options import JsonOption, QuietOption
from apt.plugins import host

app = typer.Typer(help="Training configs: list, copy, show, validate.", no_args_is_help=True)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A shipped config's name, or a file."), Completes("file")
]


@app.command("list")
@output.emits("apt.training.catalog:ConfigList")
def list_configs(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show the training configs that are shipped.

    \b
    Examples:
      apt_model config list
      apt_model config list --json

    \b
    Exit codes: 0 shown, 2 wrong call.
    """
    output.configure(json=json, quiet=quiet)
    from apt.training import catalog

    output.emit(catalog.listing())


@app.command("cp")
@output.emits("apt.training.catalog:ConfigCopy")
def copy(
    name: ConfigArgument,
    target: Annotated[
        Path, typer.Argument(metavar="DEST", help="The file to write, or a directory."), Completes("file")
    ],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a shipped config, to be changed.

    \b
    Examples:
      apt_model config cp sft/qwen2_5_3b_ce my_copy.yaml
      apt_model config cp distill/response my_copy.yaml --json

    \b
    Exit codes: 0 copied, 2 wrong call, 3 no such config, 7 the target exists, 8 it cannot be written.
    """
    output.configure(json=json, quiet=quiet)
    from apt.training import catalog

    output.emit(catalog.copy(name, target))


@app.command()
@output.emits("apt.training.checking:ResolvedConfig")
def show(name: ConfigArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show a config with its defaults filled in, as YAML.

    \b
    Examples:
      apt_model config show sft/qwen2_5_3b_ce
      apt_model config show my_run.yaml --json

    \b
    Exit codes: 0 shown, 2 a fault in the config or the call, 3 no such config.
    """
    output.configure(json=json, quiet=quiet)
    from apt.training import catalog, checking

    found = checking.resolve(catalog.find(name), host.current().registry())
    if output.json_requested():
        output.emit(found)
        return
    from apt.document import dump

    output.emit_text(dump(found.config).rstrip("\n"))


@app.command()
@output.emits("apt.training.checking:ConfigCheck")
def validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, or names of shipped configs."),
        Completes("file"),
    ],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Check configs as a whole and tell every fault with file, line, key and the nearest known word.

    Each section is checked by the schema of the component that it names, however deep it stands, and each component
    is imported. Models and texts that a config names are not looked at.

    \b
    Examples:
      apt_model config validate my_run.yaml
      apt_model config validate sft/qwen2_5_3b_ce distill/response --json

    \b
    Exit codes: 0 all are sound, 2 one has a fault, 3 no such config.
    """
    output.configure(json=json, quiet=quiet)
    from apt.training import catalog, checking

    result = checking.check_files([catalog.find(f) for f in files], host.current().registry())
    output.emit(result)
    return ExitCode.OK if result.sound else ExitCode.USAGE
