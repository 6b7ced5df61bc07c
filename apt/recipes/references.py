"""References inside a recipe: ``${inputs.model}``, ``${steps.prune.path}``, ``${out}``.

A string that is one reference takes the value's own type; inside a longer string the value is written as text.
``$${`` stands for a literal ``${``.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from apt.document import Location
from apt.registry import did_you_mean

_PATTERN: Final = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_OPEN: Final = re.compile(r"(?<!\$)\$\{[^}]*$")

#: What a reference may begin with.
ROOTS: Final = ("inputs", "steps", "out")


class ReferenceFault(Exception):
    """A reference that names nothing; ``hint`` says what was meant."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: ``${steps.prune.path}`` has the parts ``("steps", "prune", "path")``."""

    parts: tuple[str, ...]

    @property
    def step(self) -> str | None:
        """The step that it reads; ``None`` for an input, ``out`` or all steps together."""
        return self.parts[1] if self.parts[0] == "steps" and len(self.parts) > 1 else None

    @property
    def reads_steps(self) -> bool:
        """Whether its value is known only after some step has run."""
        return self.parts[0] == "steps"

    def __str__(self) -> str:
        return "${" + ".".join(self.parts) + "}"


def parse(text: str) -> list[Reference]:
    """Return the references in a string, left to right.

    :raises ReferenceFault: for one that is malformed or begins with an unknown word.
    """
    if _OPEN.search(text):
        raise ReferenceFault(f"the reference in {text!r} is not closed", "write ${…}")
    found = []
    for match in _PATTERN.finditer(text):
        if match[1] is None:
            continue
        parts = tuple(match[1].strip().split("."))
        if not all(parts):
            raise ReferenceFault(f"malformed reference {match[0]!r}", "write ${inputs.NAME} or ${steps.NAME.FIELD}")
        if parts[0] not in ROOTS:
            raise ReferenceFault(f"unknown reference {match[0]!r}", did_you_mean(parts[0], ROOTS))
        if parts[0] == "inputs" and len(parts) != 2:
            raise ReferenceFault(f"malformed reference {match[0]!r}", "write ${inputs.NAME}")
        if parts[0] == "out" and len(parts) != 1:
            raise ReferenceFault(f"malformed reference {match[0]!r}", "write ${out}/NAME")
        found.append(Reference(parts))
    return found


def strings(value: Any, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Yield every string inside a tree of values, with its place."""
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(item, (*location, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*location, index))


def resolve(value: Any, scope: Mapping[str, Any], *, keep_steps: bool = False) -> Any:
    """Return ``value`` with its references replaced.

    :param scope: ``{"inputs": …, "steps": …, "out": …}``.
    :param keep_steps: leave strings that read a step as they are (before anything has run).
    :raises ReferenceFault: when one names nothing in ``scope``.
    """
    if isinstance(value, Mapping):
        return {key: resolve(item, scope, keep_steps=keep_steps) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, scope, keep_steps=keep_steps) for item in value]
    if not isinstance(value, str):
        return value
    references = parse(value)
    if keep_steps and any(r.reads_steps for r in references):
        return value
    whole = _PATTERN.fullmatch(value)
    if whole and whole[1] is not None:
        return look_up(references[0], scope)
    remaining = iter(references)

    def text_of(match: re.Match[str]) -> str:
        if match[1] is None:
            return "${"
        reference = next(remaining)
        found = look_up(reference, scope)
        if isinstance(found, (Mapping, list)) or found is None:
            raise ReferenceFault(f"{reference} is no text or number and cannot stand inside {value!r}")
        return str(found)

    return _PATTERN.sub(text_of, value)


def look_up(reference: Reference, scope: Mapping[str, Any]) -> Any:
    """Return what a reference names.

    :raises ReferenceFault: when it names nothing.
    """
    found: Any = scope
    for depth, part in enumerate(reference.parts):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            known = [str(k) for k in found] if isinstance(found, Mapping) else []
            where = ".".join(reference.parts[:depth]) or "the recipe"
            raise ReferenceFault(f"{reference}: {where} has no {part!r}", did_you_mean(part, known))
    return found


def check_field(annotation: Any, parts: tuple[str, ...]) -> None:
    """Check that a result of the annotated type can have the field that a reference names.

    Says nothing where the type leaves it open (``Any``, mappings).

    :raises ReferenceFault: when the type has no such field.
    """
    for part in parts:
        annotation = _plain(annotation)
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            hints = typing.get_type_hints(annotation)
            names = [f.name for f in dataclasses.fields(annotation)]
            if part not in names:
                raise ReferenceFault(f"{annotation.__name__} has no field {part!r}", did_you_mean(part, names))
            annotation = hints[part]
        elif typing.get_origin(annotation) in (list, tuple, set) or annotation in (list, tuple):
            if not part.isdigit():
                raise ReferenceFault(f"{part!r} is no index of a list", "write a number: models.0.path")
            arguments = typing.get_args(annotation)
            annotation = arguments[0] if arguments else Any
        elif annotation in (str, int, float, bool, bytes, type(None)):
            raise ReferenceFault(f"a value of type {annotation.__name__} has no field {part!r}")
        else:
            return


def _plain(annotation: Any) -> Any:
    """Strip ``Annotated`` and the ``None`` of an optional."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            arms = [a for a in typing.get_args(annotation) if a is not type(None)]
            if len(arms) != 1:
                return Any
            annotation = arms[0]
        else:
            return annotation
