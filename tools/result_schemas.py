"""JSON Schemas (draft 2020-12) of what ``--json`` prints, made of the frozen dataclasses that the commands emit.

They mirror :func:`apt.console.output.to_jsonable`: a path is its text, an enumeration its value, a tuple a list, and a
figure that is not finite null.
"""

import collections.abc
import dataclasses
import enum
import inspect
import json
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Final

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_ARRAYS: Final = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_PLAIN: Final = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # null where it is not finite
    type(None): {"type": "null"},
    pathlib.Path: {"type": "string"},
    Any: {},
    object: {},
}


class _Definitions:
    """The dataclasses of one schema: each once, under a name of its own."""

    def __init__(self) -> None:
        self.schemas: dict[str, dict[str, Any]] = {}
        self._names: dict[type, str] = {}

    def of(self, hint: Any) -> dict[str, Any]:
        """Return the schema of an annotation.

        :raises TypeError: for one that has no counterpart in the printed JSON.
        """
        if hint in _PLAIN:
            return dict(_PLAIN[hint])
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Annotated, typing.Final):
            return self.of(arguments[0])
        if origin is typing.Literal:
            return {"enum": list(arguments)}
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments)
        if origin is tuple and arguments[-1:] != (...,):
            items = [self.of(a) for a in arguments]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        if origin is tuple or (origin in _ARRAYS and arguments):
            return {"type": "array", "items": self.of(arguments[0])}
        if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
            values = self.of(arguments[1])
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return {"enum": [member.value for member in hint]}
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._reference(hint)
        raise TypeError(f"no JSON Schema for {hint!r}")

    def _union(self, arms: Sequence[Any]) -> dict[str, Any]:
        found = [self.of(arm) for arm in arms]
        if all(set(schema) == {"type"} for schema in found):
            names = [n for s in found for n in ([s["type"]] if isinstance(s["type"], str) else s["type"])]
            return {"type": list(dict.fromkeys(names))}
        return {"anyOf": found}

    def _reference(self, result: type) -> dict[str, Any]:
        if result not in self._names:
            name = result.__name__
            if name in self.schemas:  # two rooms may each have a Diagnosis
                name = f"{result.__module__.rpartition('.')[2]}.{name}"
            self._names[result] = name
            self.schemas[name] = {}  # keeps the place, also for a dataclass that holds itself
            self.schemas[name] = self._object(result)
        return {"$ref": f"#/$defs/{self._names[result]}"}

    def _object(self, result: type) -> dict[str, Any]:
        hints = typing.get_type_hints(result, include_extras=True)
        summary, told = _documented(result)
        properties: dict[str, Any] = {}
        for field in dataclasses.fields(result):
            properties[field.name] = self.of(hints[field.name])
            if field.name in told:
                properties[field.name]["description"] = told[field.name]
        return {
            "type": "object",
            **({"description": summary} if summary else {}),
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


def _documented(result: type) -> tuple[str, dict[str, str]]:
    """Return a dataclass's docstring without its ``:param`` fields, and these by name."""
    summary, *fields = re.split(r"^:param (\w+):", inspect.getdoc(result) or "", flags=re.MULTILINE)
    if summary.startswith(f"{result.__name__}("):  # what dataclass writes where there is no docstring
        summary = ""
    told = {name: _line(text) for name, text in zip(fields[::2], fields[1::2], strict=True)}
    return _line(summary), told


def _line(text: str) -> str:
    text = re.sub(r":(?:data|class|func|meth|mod):`~?([^`]*)`", r"\1", text)
    return " ".join(text.replace("``", "`").split())


def schema_of(results: Sequence[type], title: str) -> dict[str, Any]:
    """Return the schema of a document that is one of the results."""
    definitions = _Definitions()
    references = [definitions.of(result) for result in results]
    body = references[0] if len(references) == 1 else {"anyOf": references}
    return {"$schema": _DRAFT, "title": title, **body, "$defs": definitions.schemas}


def error_schema() -> dict[str, Any]:
    """Return the schema of what ``--json`` prints for a call that fails."""
    from apt.console.errors import ExitCode

    codes = [code.value for code in ExitCode if code is not ExitCode.OK]
    properties = {
        "message": {"type": "string", "description": "What went wrong and where, in one line."},
        "hint": {"type": "string", "description": "How to mend it; may be empty."},
        "exit_code": {"enum": codes, "description": "The exit code of the process."},
    }
    error = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {
        "$schema": _DRAFT,
        "title": "The error of any apt_model command with --json",
        "type": "object",
        "properties": {"error": error},
        "required": ["error"],
        "additionalProperties": False,
    }


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Walk a command and its subcommands: the words, and each that does something itself."""
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name, child in children.items():
        yield from leaves(child, (*words, name))


def file_name(words: Sequence[str]) -> str:
    """Return the path of a command's schema, relative to ``docs``."""
    return f"schemas/{'-'.join(words)}.json"


def pages(commands: dict[tuple[str, ...], Any]) -> dict[str, str]:
    """Return every schema as text, by its path relative to ``docs``.

    :param commands: the commands by their words.
    :raises SystemExit: naming a command that does not declare what it emits.
    """
    from apt.console.output import EMITTED
    from apt.registry import load_target

    found = {"schemas/error.json": error_schema()}
    for words, command in commands.items():
        targets = getattr(command.callback, EMITTED, ())
        if not targets:
            raise SystemExit(f"apt_model {' '.join(words)} does not declare its results: @output.emits(…)")
        found[file_name(words)] = schema_of([load_target(t) for t in targets], f"apt_model {' '.join(words)} --json")
    return {name: json.dumps(schema, ensure_ascii=False, indent=2) + "\n" for name, schema in found.items()}
