"""The root command on Typer: commands are listed from the index and imported when they are used.

The only file that knows Typer's groups. It uses ``TyperGroup.list_commands``, ``get_command`` and
``resolve_command``, ``typer.main.get_command`` and ``get_group``: these are the same in Typer 0.20 to 0.29, although
0.26 replaced Click by a copy of its own.
"""

import os

# Help is plain text: Typer's rich panels cost 60 ms and are unreadable in a pipe. Read when Typer is imported.
os.environ["TYPER_USE_RICH"] = "0"

import functools
import inspect
import sys
import textwrap
import time
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Final

import typer
import typer.core
import typer.main
import typer.models

from apt.console import output
from apt.console.errors import NotFoundError
from apt.plugins import host as hosts
from apt.plugins.records import CommandRecord
from apt.registry import did_you_mean, load_target

#: The base of what Typer raises for a wrong call, and of all it raises to be shown; their homes differ by version.
TyperUsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
TyperError: Final[type[Exception]] = typer.BadParameter.__mro__[2]
TyperAbort: Final[type[Exception]] = typer.Abort


class ReaderGoneError(Exception):
    """The reader of the output has gone; carried past Typer, which would turn a broken pipe into exit code 1."""


class LazyGroup(typer.core.TyperGroup):
    """A group whose commands are records of the index until one is invoked."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands; nothing is imported."""
        return [c.name for c in hosts.current().data.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stub that carries name and help, which is all that listing needs."""
        record = hosts.current().data.command(cmd_name)
        return None if record is None else _stub(record)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that the command line names.

        :raises NotFoundError: when there is none of that name.
        """
        data = hosts.current().data
        record = data.command(args[0])
        if record is None:
            if args[0].startswith("-"):
                return super().resolve_command(ctx, args)
            raise NotFoundError(f"no command is called {args[0]!r}", hint=_nearest(args[0]))
        return record.name, load_command(record), args[1:]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the text that the index holds."""
        from apt.plugins import helptext

        data = hosts.current().data
        formatter.write(helptext.render(data.commands, data.plugins, output.language_of(sys.stdout)) + "\n")


def _nearest(word: str) -> str:
    commands = hosts.current().data.commands
    hint = did_you_mean(word, [c.name for c in commands])
    return hint if hint.startswith("did you mean") else "apt_model --help lists the commands"


def _stub(record: CommandRecord) -> Any:
    application = typer.Typer(add_completion=False)
    text = output.told(record.help, output.language_of(sys.stdout))
    application.command(name=record.name, help=text, short_help=text)(lambda: None)
    return typer.main.get_command(application)


def load_command(record: CommandRecord) -> Any:
    """Import a command and return it ready for Typer.

    :raises AptError: when its plugin is not ready.
    """
    target = hosts.current().target_of(record)
    command: Any
    if callable(target):
        command = _namespace_command(record, target)
    elif isinstance(found := load_target(target), typer.Typer):
        command = typer.main.get_group(found)
    else:
        application = typer.Typer(add_completion=False)
        application.command(name=record.name)(found)
        command = typer.main.get_command(application)
    command.name = record.name
    _tell_hooks(command, record.name)
    spoken = output.language_of(sys.stdout)
    if spoken != "en":
        from apt.cli import translated_help

        translated_help.prepare(command, spoken)
    return command


def has_subcommand(words: tuple[str, ...]) -> bool:
    """Whether the words name a command that exists, down to the last."""
    record = hosts.current().data.command(words[0])
    if record is None:
        return False
    command = load_command(record)
    for word in words[1:]:
        command = getattr(command, "commands", {}).get(word)
    return command is not None


def _namespace_command(record: CommandRecord, function: Callable[[SimpleNamespace], Any]) -> Any:
    """Wrap a callable that takes one namespace of the options given."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    application = typer.Typer(add_completion=False)
    words = Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS AND ARGUMENTS]")]

    def run(arguments: words = None) -> Any:
        return function(parse_namespace(arguments or []))

    text = inspect.getdoc(function) or record.help
    application.command(name=record.name, help=text, context_settings=settings)(run)
    return typer.main.get_command(application)


def parse_namespace(words: list[str]) -> SimpleNamespace:
    """Turn the words after a command into a namespace.

    ``--flag value`` and ``--flag=value`` become ``flag="value"``, ``--switch`` (at the end or before another option)
    becomes ``switch=True``, a repeated option becomes a list; dashes inside names become underscores. The other words
    are in ``positional``; everything after ``--`` is positional.
    """
    options: dict[str, Any] = {}
    positional: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            positional += rest
            break
        if not _is_option(word):
            positional.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        given: Any = value if equals else True
        if not equals and rest and not _is_option(rest[0]) and rest[0] != "--":
            given = rest.pop(0)
        name = name.replace("-", "_")
        if name in options:
            before = options[name]
            given = [*before, given] if isinstance(before, list) else [before, given]
        options[name] = given
    return SimpleNamespace(**{**options, "positional": positional})


def _is_option(word: str) -> bool:
    """Whether a word is an option; a negative number is none."""
    return len(word) > 1 and word[0] == "-" and not word[1].isdigit() and word != "--"


def _tell_hooks(command: Any, words: str) -> None:
    """Have the hooks told before and after each command below ``command`` runs; make its help plain text.

    Of managing plugins no hook is told: it must not need what it is to mend or to remove.
    """
    command.rich_markup_mode = None
    command.help = _with_examples(command.help or "")
    children = getattr(command, "commands", None)
    if children is not None:
        for child in children.values():
            _tell_hooks(child, f"{words} {child.name}")
        return
    function = command.callback
    if function is None:
        return
    _keep_argument_help(command, function)

    @functools.wraps(function)
    def told(*arguments: Any, **options: Any) -> Any:
        fire = _told_nobody if words.partition(" ")[0] == "plugin" else hosts.current().fire
        fire("before_operation", operation=words, options=options)
        begun = time.monotonic()
        error: BaseException | None = None
        try:
            return function(*arguments, **options)
        except BrokenPipeError as raised:
            error = raised
            raise ReaderGoneError from None
        except BaseException as raised:
            error = raised
            raise
        finally:
            seconds = time.monotonic() - begun
            fire("after_operation", operation=words, options=options, seconds=seconds, error=error)

    command.callback = told


def _told_nobody(hook: str, **facts: Any) -> list[Any]:
    return []


def _keep_argument_help(command: Any, function: Callable[..., Any]) -> None:
    """Give arguments the help that they were declared with.

    Click 8.5 has a help of its own for arguments, and sets it to nothing over the one that Typer 0.25 has set; it also
    has a section for them, beside Typer's.
    """
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.help]
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True) if arguments else {}
    for argument in arguments:
        declared = getattr(hints.get(argument.name), "__metadata__", ())
        argument.help = next((d.help for d in declared if isinstance(d, typer.models.ArgumentInfo)), None)
        command.format_arguments = lambda ctx, formatter: None


def _with_examples(text: str) -> str:
    """Keep the indented lines below ``Examples:`` from being wrapped into one paragraph."""
    head, mark, tail = text.partition("Examples:\n")
    if not mark:
        return text
    lines = tail.splitlines()
    ends = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    if ends and lines[ends - 1 : ends] == ["\b"]:  # Click's mark belongs to what follows
        ends -= 1
    examples = textwrap.dedent("\n".join(line for line in lines[:ends] if line.strip("\b ")))
    shown = ["\b", "Examples:", textwrap.indent(examples, "  ")]
    return "\n".join([head.removesuffix("\b\n").rstrip(), "", *shown, "", *lines[ends:]])


def root() -> Any:
    """Return the root command."""
    application = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=False)

    @application.callback()
    def apt_model() -> None:
        """One command line from a language-model checkpoint to a smaller, proven, shipped model."""

    return typer.main.get_command(application)
