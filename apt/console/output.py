"""The only place that prints: results on stdout (tables or JSON), talk on stderr.

Colour and animation appear only on a terminal and never when ``NO_COLOR`` is set.
"""

import dataclasses
import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from apt import language
from apt.console.errors import AptError
from apt.console.table import Result, Table

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: Where a command function holds the names of the results that it emits.
EMITTED: Final = "emitted_results"

#: Cells of a numeric column that hold no number.
_NO_FIGURE: Final = ("", "-", "–", "nan")

#: What stands before a warning and an error, and around a hint.
_MARKS: Final = {"en": ("warning: ", "error: ", " (", ")"), "zh-CN": ("警告：", "错误：", "（", "）")}


@dataclasses.dataclass(slots=True)
class _Settings:
    json: bool = False
    quiet: bool = False


_settings = _Settings()


def configure(*, json: bool = False, quiet: bool = False) -> None:
    """Set the form of the output for the rest of the process."""
    _settings.json = json
    _settings.quiet = quiet


def json_requested() -> bool:
    """Whether results and errors are written as JSON."""
    return _settings.json


def is_quiet() -> bool:
    """Whether talk (not errors) is left out."""
    return _settings.quiet


def coloured(stream: Any) -> bool:
    """Whether escape codes may be written to ``stream``."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def to_jsonable(value: Any) -> Any:
    """Turn a result (dataclasses, paths, enums, tuples) into plain JSON values; non-finite floats become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_jsonable(v) for v in value]
    if isinstance(value, Enum):
        return to_jsonable(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value - value != 0.0:  # NaN and infinities are not JSON
        return None
    return value


def to_json(value: Any) -> str:
    """Return indented JSON text; Chinese stays readable."""
    return json.dumps(to_jsonable(value), ensure_ascii=False, indent=2)


def display_width(text: str) -> int:
    """Columns that ``text`` takes on a terminal: East Asian wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def language_of(stream: Any) -> str:
    """Return the language of what is written to ``stream``: English where its encoding has no Chinese."""
    chosen = language()
    if chosen != "en":
        try:
            "中".encode(getattr(stream, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return "en"
    return chosen


def told(text: str, spoken: str) -> str:
    """Return a message of ours in a language."""
    if spoken == "en":
        return text
    from apt.console import catalogue  # English does without it

    return catalogue.load(spoken).translate(text)


def format_table(table: Table, spoken: str = "en") -> str:
    """Lay a table out in aligned columns; numeric columns are right-aligned."""
    if spoken != "en":
        from apt.console import catalogue

        table = catalogue.load(spoken).table(table)
    rows = [list(table.columns), *[list(row) for row in table.rows]]
    widths = [max(display_width(row[i]) for row in rows) for i in range(len(table.columns))]
    numeric = [
        bool(table.rows) and all(r[i] in _NO_FIGURE or r[i].lstrip("+-")[:1].isdigit() for r in table.rows)
        for i in range(len(table.columns))
    ]

    def line(row: list[str]) -> str:
        cells = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            padding = " " * (width - display_width(cell))
            cells.append(padding + cell if right else cell + padding)
        return "  ".join(cells).rstrip()

    head = [table.title] if table.title else []
    return "\n".join([*head, *(line(row) for row in rows)])


def emits(*targets: str) -> Callable[[_Command], _Command]:
    """Declare which results a command may emit; its schema in ``docs/schemas`` is made of them.

    :param targets: ``"package.module:Class"`` of frozen dataclasses; nothing is imported.
    """

    def mark(command: _Command) -> _Command:
        setattr(command, EMITTED, targets)
        return command

    return mark


def emit(result: Result) -> None:
    """Write a result to stdout: JSON when asked for, tables else."""
    if _settings.json:
        _write(sys.stdout, to_json(result))
        return
    spoken = language_of(sys.stdout)
    _write(sys.stdout, "\n\n".join(format_table(t, spoken) for t in result.tables()))


def emit_text(text: str) -> None:
    """Write plain text that is itself the data (a template, a completion script) to stdout."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """Tell something in passing, on stderr."""
    if not _settings.quiet:
        _write(sys.stderr, told(text, language_of(sys.stderr)))


def warn(text: str) -> None:
    """Tell something that the user should know, on stderr; shown even when quiet."""
    spoken = language_of(sys.stderr)
    _write(sys.stderr, f"{_MARKS[spoken][0]}{told(text, spoken)}")


@contextmanager
def silenced() -> Iterator[None]:
    """Let nothing be printed, by Python or by native code: for importing what others wrote."""
    saved = []
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        for descriptor in (1, 2):
            with suppress(OSError):  # closed by the caller: nothing to silence
                saved.append((descriptor, os.dup(descriptor)))
                os.dup2(nowhere.fileno(), descriptor)
        try:
            yield
        finally:
            for descriptor, kept in saved:
                os.dup2(kept, descriptor)
                os.close(kept)


def fail(error: AptError) -> None:
    """Write an error: one line on stderr, and with ``--json`` an object on stdout."""
    if _settings.json:
        _write(
            sys.stdout,
            to_json({"error": {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}}),
        )
    spoken = language_of(sys.stderr)
    message, hint = (told(" ".join(text.split()), spoken) for text in (error.message, error.hint))
    _, mark, opening, closing = _MARKS[spoken]
    word = mark.rstrip(" ")
    prefix = f"\x1b[31m{word}\x1b[0m{mark[len(word) :]}" if coloured(sys.stderr) else mark
    _write(sys.stderr, f"{prefix}{message}{opening}{hint}{closing}" if hint else f"{prefix}{message}")


def _write(stream: Any, text: str) -> None:
    """Write a line; characters that the stream's encoding lacks are escaped rather than fatal."""
    line = text + "\n"
    raw = getattr(stream, "buffer", None)
    if isinstance(raw, io.RawIOBase):  # PYTHONUNBUFFERED: what a nearly full disk does not take at once is lost
        stream.flush()
        rest = memoryview(line.encode(stream.encoding or "ascii", "backslashreplace"))
        while rest:
            rest = rest[raw.write(rest) or 0 :]
        return
    try:
        stream.write(line)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
