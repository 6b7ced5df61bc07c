"""Which values inside an operation's options are inputs and outputs, by the marks of :mod:`apt.options`."""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel

from apt.document import Location
from apt.options import Input, Output


@dataclass(frozen=True, slots=True)
class Marked:
    """A value that is read or written, and where it stands in the options."""

    location: Location
    mark: Input | Output
    value: str


def marked(options: BaseModel) -> list[Marked]:
    """Return every marked value of validated options, also inside lists, mappings and nested models."""
    return list(_model(options, ()))


def _model(options: BaseModel, location: Location) -> Iterator[Marked]:
    for name, info in type(options).model_fields.items():
        value = getattr(options, name)
        place = (*location, info.alias or name)
        mark = _mark(info.metadata)
        if mark is not None and value is not None:
            yield Marked(place, mark, str(value))
        else:
            yield from _value(info.annotation, value, place)


def _value(annotation: Any, value: Any, location: Location) -> Iterator[Marked]:
    if value is None:
        return
    if isinstance(value, BaseModel):
        yield from _model(value, location)
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        mark = _mark(arguments[1:])
        if mark is None:
            yield from _value(arguments[0], value, location)
        else:
            yield Marked(location, mark, str(value))
    elif origin in (typing.Union, types.UnionType):
        for arm in arguments:
            found = list(_value(arm, value, location))
            if found:
                yield from found
                return
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for key, item in value.items():
            yield from _value(arguments[1], item, (*location, str(key)))
    elif isinstance(value, (list, tuple)) and arguments:
        for index, item in enumerate(value):
            fixed = origin is tuple and arguments[-1] is not Ellipsis
            yield from _value(arguments[index if fixed else 0], item, (*location, index))


def _mark(metadata: Any) -> Input | Output | None:
    return next((m for m in metadata if isinstance(m, (Input, Output))), None)
