"""The command line's frame: one command is run, and whatever it raises becomes one line and an exit code."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from apt.console import output
from apt.console.errors import AptError, ExitCode, NotFoundError, UsageError, explain, one_line
from apt.console.table import Table
from apt.plugins import host as hosts
from apt.plugins.core import LEGACY_COMMANDS
from apt_model import __version__

#: What a shell reports for a process whose reader has gone.
BROKEN_PIPE: Final = 141


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, who wants to hear nothing
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
    # Waiting threads of a torch operation spin by default; on cores that anything else uses too, that makes small
    # models several times slower. OpenMP reads this when torch is imported; a user's own setting stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _reader_gone()
    except KeyboardInterrupt:
        return _fail(AptError("interrupted"), ExitCode.INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:  # the command of a plugin may raise anything
        if os.environ.get("APT_DEBUG"):
            import traceback

            traceback.print_exc()
        known = explain(error)
        if known is None:
            known = _unexpected(error)
        return _fail(known, known.exit_code)


def _run(words: list[str]) -> int:
    words, traced = _globals(words)
    try:
        return _dispatch(words)
    finally:
        if traced:
            for table in hosts.current().hook_costs() or [Table("", ("hooks",), [("no hook of a plugin was called",)])]:
                output.note(output.format_table(table))


def _globals(words: list[str]) -> tuple[list[str], bool]:
    """Take the options before the command that concern plugins; they are no business of the command."""
    rest, traced = list(words), False
    while rest and rest[0] in ("--safe-mode", "--trace-hooks"):
        if rest.pop(0) == "--safe-mode":
            os.environ["APT_SAFE_MODE"] = "1"  # for the processes that the command starts, too
        else:
            traced = True
    return rest, traced


def _dispatch(words: list[str]) -> int:
    if "--json" in words:  # also an error before the command has read its options is told as JSON
        output.configure(json=True)
    if not words:
        output.emit_text(_help())
        return ExitCode.USAGE
    if words[0] in ("--help", "-h"):
        output.emit_text(_help())
        return ExitCode.OK
    if words == ["--version"]:
        output.emit_text(f"apt_model {__version__}")
        return ExitCode.OK
    words = _without_legacy(_as_completion(words))
    from apt.cli import lazy

    try:
        result = lazy.root()(args=words, prog_name=_program(), standalone_mode=False)
    except lazy.TyperUsageError as error:
        raise UsageError(_message(error), hint=_usage(error)) from None
    except lazy.TyperError as error:
        raise AptError(_message(error)) from None
    except lazy.ReaderGoneError:
        raise BrokenPipeError from None
    except lazy.TyperAbort:
        raise KeyboardInterrupt from None
    if result == ExitCode.INTERRUPTED:  # Typer turns a KeyboardInterrupt into this code
        raise KeyboardInterrupt
    return result if isinstance(result, int) and not isinstance(result, bool) else ExitCode.OK


def _help() -> str:
    from apt.plugins import helptext

    data = hosts.current().data
    return helptext.render(data.commands, data.plugins, output.language_of(sys.stdout))


def _program() -> str:
    name = Path(sys.argv[0]).name
    return name if name == "apt-model" else "apt_model"


def _as_completion(words: list[str]) -> list[str]:
    """Replace the root's options for completion by the command that does it."""
    if words[0] in ("--install-completion", "--show-completion"):
        return ["completion", *words[1:], *(["--install"] if words[0] == "--install-completion" else [])]
    return words


def _without_legacy(words: list[str]) -> list[str]:
    """Replace a command of the earlier documents by what stands for it now.

    :raises NotFoundError: when its plugin is not part of this installation.
    """
    data = hosts.current().data
    if words[0] not in LEGACY_COMMANDS or data.command(words[0]) is not None:
        return words
    from apt.cli import lazy

    plugin, now = LEGACY_COMMANDS[words[0]]
    if not lazy.has_subcommand(now):
        raise NotFoundError(
            f"the command {words[0]!r} belongs to the plugin {plugin}, which is not there or does not have it yet",
            hint="apt_model --help lists the commands",
        )
    output.note(f"{words[0]} is now: apt_model {' '.join(now)}")
    return [*now, *words[1:]]


def _message(error: Exception) -> str:
    """Return the text of an error of Typer; where both Click and Typer suggest a name, once."""
    text = str(getattr(error, "format_message", lambda: str(error))())
    head, suggests, tail = text.partition(" Did you mean")
    return (head + suggests + tail.split(" Did you mean")[0]).rstrip(".")


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help shows the usage" if context is not None else ""


def _unexpected(error: BaseException) -> AptError:
    """Keep the traceback of a fault of ours in a file and tell where it is."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="apt_model-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as log:
        log.write(f"apt_model {' '.join(sys.argv[1:])}\n\n")
        traceback.print_exception(error, file=log)
    return AptError(f"unexpected {one_line(error)}", hint=f"traceback in {log.name}; please report it")


def _fail(error: AptError, code: int) -> int:
    try:
        output.fail(error)
    except BrokenPipeError:
        return _reader_gone()
    except OSError:  # one of the two takes nothing (a full disk): the other and the code still say what happened
        _reader_gone()
        output.configure(json=False)
        with suppress(OSError):
            output.fail(error)
    return int(code)


def _reader_gone() -> int:
    """Point stdout at nothing, so that Python's own flush at exit stays quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return BROKEN_PIPE
