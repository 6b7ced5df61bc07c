"""``apt_model plugin search`` and ``doctor``. No plugin is imported here."""

from typing import Annotated

import typer

from apt.cli.plugin_packages import IndexOption
from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import ExitCode
from apt.console.typer_options import JsonOption, QuietOption


@output.emits("apt.plugins.search:SearchResult")
def search(
    text: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Words to find; all without.")] = None,
    index: IndexOption = "",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find plugins that are installed, part of apt_model, or offered by a curated index.

    Name, command, description and author are searched, in any script and without regard to case. A curated index is a
    JSON file {"plugins": [{"name": …, "description": …, "requirement": …}]} on a disk or a web server.

    \b
    Examples:
      apt_model plugin search
      apt_model plugin search prune
      apt_model plugin search 剪枝 --index ./plugins.json

    \b
    Exit codes: 0 shown, 2 wrong call, 3 no such index, 4 a bad index, 9 the index could not be fetched.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import search as searching

    output.emit(searching.search(" ".join(text or ()), index=index))


@output.emits("apt.plugins.doctor:DoctorResult")
def doctor(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One plugin; all without."), Completes("plugin")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Find faults of plugins and of what holds them; no plugin is imported.

    Looked at are: the status of each plugin, owners and modes in the plugin directory, manifests against sources,
    requirements, conflicts, names that are taken, trials and changes since, files against what was installed, the
    cache, pip, and the packages that no plugin may replace. Each finding says what shows it and what mends it.

    \b
    Examples:
      apt_model plugin doctor
      apt_model plugin doctor ollama --json

    \b
    Exit codes: 0 no error found (warnings may be), 2 wrong call, 3 no such plugin, 10 an error was found.
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins import doctor as looking

    result = looking.examine(name or "")
    output.emit(result)
    return ExitCode.OK if result.sound else ExitCode.CHECK_FAILED
