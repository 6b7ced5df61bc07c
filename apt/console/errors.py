"""Errors that a user can act on: what went wrong, where, how to mend it, and the exit code that says so."""

import errno
import os
import re
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """The exit codes of every command; documented in ``docs/cli.md``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    BAD_INPUT = 4
    UNSUPPORTED = 5
    MISSING_DEPENDENCY = 6
    TARGET_EXISTS = 7
    CANNOT_WRITE = 8
    NETWORK = 9
    CHECK_FAILED = 10
    INTERRUPTED = 130


class AptError(Exception):
    """A failure told in one line.

    :param message: what went wrong and where, in one line.
    :param hint: how to mend it; may be empty.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(AptError):
    """The call itself is wrong: unknown option, contradictory options, a bad recipe or config."""

    exit_code = ExitCode.USAGE


class NotFoundError(AptError):
    """A model, file, component or plugin of that name does not exist."""

    exit_code = ExitCode.NOT_FOUND


class BadInputError(AptError):
    """An input is corrupted, contradictory or unsafe."""

    exit_code = ExitCode.BAD_INPUT


class UnsupportedError(AptError):
    """The input is sound, but this operation does not cover it (an architecture without descriptor, say)."""

    exit_code = ExitCode.UNSUPPORTED


class MissingDependencyError(AptError):
    """A library that the operation needs is not installed."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class TargetExistsError(AptError):
    """The output exists and ``--overwrite`` was not given."""

    exit_code = ExitCode.TARGET_EXISTS


class CannotWriteError(AptError):
    """The output cannot be written: permission, read-only file system, full disk."""

    exit_code = ExitCode.CANNOT_WRITE


class NetworkError(AptError):
    """A server could not be reached or refused."""

    exit_code = ExitCode.NETWORK


class CheckFailedError(AptError):
    """A verification ran and the model did not pass it."""

    exit_code = ExitCode.CHECK_FAILED


#: How the system says that something cannot be written; the first two, that something cannot be read either.
WRITE_REFUSALS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def first_line(error: BaseException, length: int = 200) -> str:
    """Return the first line of an exception that says something, at most ``length`` characters of it."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shown(value: object, length: int = 80) -> str:
    """Return a value as Python writes it, at most ``length`` characters; a huge whole number by its size in bits."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def one_line(error: BaseException) -> str:
    """Return an exception as one line: an error of ours by its text, any other by its type, too.

    One whose text cannot be had (its ``__str__`` raises) is told by its type.
    """
    try:
        text = " ".join(str(error).split())
    except BaseException:  # of code that others wrote, which is told of because it fails
        return type(error).__name__
    if isinstance(error, AptError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error in an exception; safetensors' own one holds it as text only."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def explain(error: BaseException) -> AptError | None:
    """Return the user-facing form of an exception, or ``None`` when it is a fault of ours.

    Errors of the operating system are the user's to mend as often as not; they are mapped here so that no
    caller has to.
    """
    if isinstance(error, AptError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("apt"):
        return MissingDependencyError(
            f"the Python package {error.name!r} is not installed", hint=f"pip install {error.name}"
        )
    if isinstance(error, ModuleNotFoundError) and not error.name:  # transformers tells so of a class that needs torch
        return MissingDependencyError(first_line(error), hint="is torch installed? apt_model debug")
    error = system_error(error) or error
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"no such file or directory: {error.filename or 'the current directory is gone'}")
    if isinstance(error, OSError) and error.errno in WRITE_REFUSALS:
        where = f": {error.filename}" if error.filename else ""
        verb = "cannot read or write" if error.errno in (errno.EACCES, errno.EPERM) else "cannot write"
        return CannotWriteError(f"{verb}{where}: {error.strerror}")
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return AptError(f"{error.strerror}{where}")
    return None
