"""``apt_model plugin lock`` and ``sync``: the set of plugins, written down and restored. No plugin is imported here."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import ExitCode
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption


@output.emits("apt.plugins.locking:LockResult")
def lock(
    file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The lock file; wheels go to FILE.wheels.")
    ] = Path("apt-plugins.json"),
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write down the foreign plugins that are installed, with hashes, so that sync restores them elsewhere.

    Packages that a package index has are pinned to its wheels; others are packed into FILE.wheels; files of the
    plugin directory are part of FILE. torch, transformers, numpy, Python and apt_model are written down as what the
    set needs; sync never installs them.

    \b
    Examples:
      apt_model plugin lock
      apt_model plugin lock -o plugins.json --overwrite

    \b
    Exit codes: 0 written, 2 wrong call, 4 files that are not as installed or not the user's own, 5 an editable
    installation, 7 FILE exists, 8 cannot write.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import locking

    output.emit(locking.lock(file, overwrite=overwrite))


@output.emits("apt.plugins.syncing:SyncResult")
def sync(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A lock file that plugin lock wrote."), Completes("file")
    ],
    exact: Annotated[bool, typer.Option("--exact", help="Remove plugins that the lock does not name.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Install the plugins that a lock file names, each from a file with the hash that was written down.

    Everything is verified before anything changes. A file of the plugin directory that differs is kept in
    APT_HOME/removed-plugins. A run that was interrupted is run again.

    \b
    Examples:
      apt_model plugin sync apt-plugins.json
      apt_model plugin sync plugins.json --exact --dry-run

    \b
    Exit codes: 0 the set is that of the lock, 1 pip failed, 2 wrong call, 3 no such file, 4 a bad lock or wheel,
    6 the environment is another or has no pip, 8 cannot write, 9 no index could be reached, 10 the set differs.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import syncing

    result = syncing.sync(file, exact=exact, dry_run=dry_run)
    output.emit(result)
    return ExitCode.OK if result.same else ExitCode.CHECK_FAILED
