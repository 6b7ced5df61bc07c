"""The commands of cloud storage: parse, call the library, show the result."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption

app = typer.Typer(help="Back up models by tensor; upload and download whole models.", no_args_is_help=True)

ToOption = Annotated[str, typer.Option("--to", help="The store: file:///path, or a path."), Completes("directory")]
FromOption = Annotated[str, typer.Option("--from", help="The store: file:///path, or a path."), Completes("directory")]
PlatformOption = Annotated[
    str,
    typer.Option("--platform", help="huggingface, modelscope or local (a folder)."),
    Completes("choices:huggingface,modelscope,local"),
]


@app.command()
@output.emits("apt.plugins.builtin.cloud_storage.backup:BackupResult")
def backup(
    model: Annotated[
        str, typer.Argument(help="A path, a name in the store, hf:owner/name or tiny."), Completes("model")
    ],
    to: ToOption,
    name: Annotated[str, typer.Option("--name", help="Name of the backup; the model's when left out.")] = "",
    tag: Annotated[str, typer.Option("--tag", help="Name this version for good.")] = "",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add a version to a store; only tensors that it does not hold yet are stored.

    A run that is interrupted leaves the older versions intact, and the same call goes on. The directories .git and
    .cache are left out.

    \b
    Examples:
      apt_model cloud-storage backup tiny --to ./backups
      apt_model cloud-storage backup ./pruned --to file:///mnt/drive/backups --name my-model --tag pruned

    \b
    Exit codes: 0 backed up, 2 wrong call, 3 no such model, 4 a damaged model, 7 the tag stands for other
    content, 8 cannot write the store.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.cloud_storage import backup as library

    options = library.BackupOptions(model=model, to=to, name=name, tag=tag)
    output.emit(library.plan_backup(options) if dry_run else library.backup(options))


@app.command()
@output.emits("apt.plugins.builtin.cloud_storage.restore:RestoreResult")
def restore(
    name: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@TAG; the newest version when left out.")],
    source: FromOption,
    out: Annotated[Path, typer.Option("--output", "-o", help="The directory to make."), Completes("directory")],
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Restore a version bit for bit; every piece and every file is checked.

    \b
    Examples:
      apt_model cloud-storage restore tiny --from ./backups -o ./tiny
      apt_model cloud-storage restore my-model@2 --from ./backups -o ./second

    \b
    Exit codes: 0 restored and verified, 3 no such store or version, 4 a damaged store, 7 the output exists,
    8 cannot write.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.cloud_storage import restore as library

    options = library.RestoreOptions(name=name, source=source, output=out, overwrite=overwrite)
    output.emit(library.plan_restore(options) if dry_run else library.restore(options))


@app.command("list")
@output.emits("apt.plugins.builtin.cloud_storage.restore:ListResult")
def list_(
    source: FromOption,
    name: Annotated[str, typer.Argument(help="List this backup only.")] = "",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the versions of a store with their sizes, new bytes and dates.

    \b
    Examples:
      apt_model cloud-storage list --from ./backups

    \b
    Exit codes: 0 listed (damaged versions with their fault), 3 no such store or backup.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.cloud_storage.restore import ListOptions, list_backups

    output.emit(list_backups(ListOptions(source=source, name=name)))


@app.command()
@output.emits("apt.plugins.builtin.cloud_storage.transfer:UploadResult")
def upload(
    model: Annotated[
        str, typer.Argument(help="The model; the newest of the store when left out."), Completes("model")
    ] = "",
    platform: PlatformOption = "huggingface",
    repo: Annotated[str, typer.Option("--repo", help="OWNER/NAME, NAME, or a folder for local.")] = "",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Upload a whole model, and check what the platform then holds.

    The Hub is the one that HF_ENDPOINT names; the token is that of `hf auth login`. Repositories are made private.

    \b
    Examples:
      apt_model cloud-storage upload --platform modelscope
      apt_model cloud-storage upload ./pruned --platform huggingface --repo me/pruned --dry-run

    \b
    Exit codes: 0 uploaded and verified, 3 no such model, 5 a platform not supported, 6 its package is missing,
    9 network.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.cloud_storage import transfer as library

    options = library.UploadOptions(model=model, platform=platform, repository=repo)
    output.emit(library.plan_upload(options) if dry_run else library.upload(options))


@app.command()
@output.emits("apt.plugins.builtin.cloud_storage.transfer:DownloadResult")
def download(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME, or a folder for local.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The directory to make."), Completes("directory")],
    platform: PlatformOption = "huggingface",
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit.")] = "",
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Download a whole model as it is; every file is checked while it is received.

    To get a model ready for use, pickles converted and tensors checked, take `huggingface import`.

    \b
    Examples:
      apt_model cloud-storage download me/pruned -o ./pruned

    \b
    Exit codes: 0 downloaded and verified, 3 no such repository, 4 received corrupted, 7 the output exists, 9 network.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.cloud_storage import transfer as library

    options = library.DownloadOptions(
        repository=repo, platform=platform, output=out, revision=revision, overwrite=overwrite
    )
    output.emit(library.download(options))
