"""The commands of the Hugging Face bridge: parse, call the library, show the result."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import UsageError
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption

app = typer.Typer(help="Import models from a directory, the cache or a Hub, and export them.", no_args_is_help=True)


@app.command("import")
@output.emits("apt.plugins.builtin.huggingface.importing:ImportResult")
def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="gpt2, owner/name[@revision], hf:…, ./dir or tiny."),
        Completes("model"),
    ],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The directory to make."), Completes("directory")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The model's name in the store, in place of its own.")] = "",
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit of a model of the Hub.")] = "",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Take and run the model's own Python code.")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Import a model: pinned to a commit, hashed while it is received, every tensor accounted for.

    A bare name is a model of the Hub here (HF_ENDPOINT names the Hub); an existing path with a separator is a
    directory. Without --output the model goes to the store. Pickled weights are read without running anything in
    them and written as safetensors. Missing, unexpected or mismatched tensors are refused.

    \b
    Examples:
      apt_model huggingface import gpt2
      apt_model huggingface import owner/name --revision v1.0 --name mine
      apt_model huggingface import ./checkpoint-500 -o ./imported --json

    \b
    Exit codes: 0 imported, 2 wrong call, 3 no such model, 4 corrupted, unsafe or incomplete, 5 transformers cannot
    build it, 7 the output exists, 8 cannot write, 9 network.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.huggingface import importing as library
    from apt.plugins.builtin.huggingface.origins import as_hub_name, default_output

    if out is not None and name:
        raise UsageError("--output and --name were both given", hint="--name names a model in the store")
    ref = as_hub_name(source)
    options = library.ImportOptions(
        model=ref,
        output=out or default_output(ref, name),
        revision=revision,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    output.emit(library.plan_import(options) if dry_run else library.import_model(options))


@app.command("export")
@output.emits("apt.plugins.builtin.huggingface.exporting:ExportResult")
def export(
    model: Annotated[
        str, typer.Argument(help="A path, a name in the store, hf:owner/name or tiny."), Completes("model")
    ],
    repo: Annotated[str, typer.Option("--repo", help="OWNER/NAME, or NAME under the token's user.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; private by default.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Send a checkpoint to a Hub as one commit, and compare what the Hub then holds with what was sent.

    The Hub is the one that HF_ENDPOINT names; the token is that of `hf auth login`.

    \b
    Examples:
      apt_model huggingface export ./recovered --repo me/recovered
      apt_model huggingface export tiny --repo me/tiny --dry-run

    \b
    Exit codes: 0 exported and verified, 2 wrong call, 3 no such model, 4 a damaged model, 9 network.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.huggingface import exporting as library

    options = library.ExportOptions(model=model, repository=repo, private=not public)
    output.emit(library.plan_export(options) if dry_run else library.export_model(options))
