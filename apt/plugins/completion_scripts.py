"""The completion scripts of the shells, and where each shell looks for a user's."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.atomic import atomic_file
from apt.console.errors import TargetExistsError, UsageError
from apt.console.table import Table
from apt.plugins.completion_words import harmless

SHELLS: Final = ("bash", "zsh", "fish")
PROGRAMS: Final = ("apt_model", "apt-model")
#: The line by which a file is known to be one of ours, which is replaced without asking.
_MARK: Final = "Completion of apt_model for "


@dataclass(frozen=True, slots=True)
class Script:
    """A shell's completion script."""

    shell: str
    text: str

    def tables(self) -> list[Table]:
        """The script is shown as it is; this is what it is."""
        return [Table("", ("shell", "lines"), [(self.shell, str(self.text.count("\n")))])]


@dataclass(frozen=True, slots=True)
class Installed:
    """The result of ``completion --install``.

    :param files: what was written, or would be.
    :param activate: what makes the shell use it.
    """

    shell: str
    files: tuple[str, ...]
    activate: str
    dry_run: bool

    def tables(self) -> list[Table]:
        """One line a file, then what remains to be done."""
        verb = "would write" if self.dry_run else "written"
        rows = [*((verb, file) for file in self.files), ("to use it", self.activate)]
        return [Table("", (self.shell, ""), rows)]


def shell_of(name: str | None) -> str:
    """Return the shell of that name; without one, the user's login shell.

    :raises UsageError: when there is no script for it.
    """
    found = name or Path(os.environ.get("SHELL", "")).name
    if found not in SHELLS:
        told = f"no completion for the shell {found!r}" if found else "which shell? SHELL is not set"
        raise UsageError(told, hint=f"one of {', '.join(SHELLS)}")
    return found


def script(shell: str) -> Script:
    """Return a shell's script."""
    file = Path(__file__).parent / "shells" / f"completion.{shell}"
    text = file.read_text(encoding="utf-8").replace("@PROGRAM@", _quoted(_program(), shell))
    return Script(shell, text)


def _program() -> str:
    """Return what is run when ``apt_model`` is not on the path: the program of this environment.

    Never the program as it was typed: in a strange directory, ``./apt_model`` and the Tab key would run it.
    """
    beside = Path(sys.executable).with_name("apt_model")
    return str(beside) if beside.is_file() and harmless(str(beside)) else "apt_model"


def _quoted(text: str, shell: str) -> str:
    if shell != "fish":
        return shlex.quote(text)
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def install(shell: str, *, overwrite: bool = False, dry_run: bool = False) -> Installed:
    """Write a shell's script where that shell looks for a user's, whole or not at all.

    :raises TargetExistsError: when a file of somebody else is there and ``overwrite`` is false.
    :raises CannotWriteError: when the place cannot be written.
    """
    files, activate = _places(shell)
    for file in files:
        if not overwrite and file.exists() and _MARK not in file.read_text(encoding="utf-8", errors="replace"):
            raise TargetExistsError(f"{file} exists and is not of apt_model", hint="--overwrite replaces it")
    if not dry_run:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file, overwrite=True) as stream:
                stream.write(script(shell).text.encode())
    return Installed(shell, tuple(map(str, files)), activate, dry_run)


def _places(shell: str) -> tuple[list[Path], str]:
    """Return a shell's files and what makes it use them; bash and fish look for a file by the command's name."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    if shell == "zsh":
        directory = data / "zsh/site-functions"
        return [directory / "_apt_model"], f"in ~/.zshrc, before compinit: fpath=({shlex.quote(str(directory))} $fpath)"
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return [config / "fish/completions" / f"{name}.fish" for name in PROGRAMS], "a new shell"
    files = [data / "bash-completion/completions" / name for name in PROGRAMS]
    source = f"source {shlex.quote(str(files[0]))}"
    return files, f"a new shell; without the package bash-completion, in ~/.bashrc: {source}"
