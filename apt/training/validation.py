"""Checking a config as a whole: every section by the schema of the component that it names, however deep it stands.

Schemas are imported to check against; models, texts and the components themselves are not.
"""

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from apt.console.errors import AptError
from apt.document import Document, Location
from apt.registry import Registry, did_you_mean
from apt.training.sections import OfKind, Section


def check(schema: type[BaseModel], document: Document, registry: Registry) -> Any:
    """Return the document as an instance of ``schema``, with each component's own options in it.

    :raises DocumentError: with every fault, each with its line, the path of its key, and the nearest known word.
    """
    found = _Checker(document, registry).model(schema, document.value, ())
    document.raise_problems()
    return found


class _Checker:
    def __init__(self, document: Document, registry: Registry) -> None:
        self._document = document
        self._registry = registry

    def model(self, schema: type[BaseModel], value: Any, at: Location) -> BaseModel | None:
        """Check one mapping against its schema, its inner sections first; ``None`` where there is a fault."""
        if isinstance(value, schema):
            return value
        if not isinstance(value, Mapping):
            self._fault(at, f"expected a mapping of settings, got {_shown(value)}")
            return None
        before = len(self._document.problems)
        values = dict(value)
        inner = {key: self._inner(schema, key, values[key], (*at, key)) for key in values if _holds(schema, key)}
        self._plain(schema, values, frozenset(inner), at)
        if len(self._document.problems) > before:
            return None
        try:
            return schema.model_validate({**values, **inner})
        except ValidationError as error:
            for one in error.errors(include_url=False):
                self._tell(one, schema, at)
            return None

    def _plain(self, schema: type[BaseModel], values: dict[str, Any], inner: frozenset[str], at: Location) -> None:
        """Note the faults of all that is no section, by JSON's rules: ``"3"`` is no number and ``true`` no 1."""
        try:
            text = json.dumps({k: None if k in inner else v for k, v in values.items()}, default=_as_json)
            schema.model_validate_json(text, strict=True)
        except ValidationError as error:
            for one in error.errors(include_url=False):
                if one["loc"] and one["loc"][0] not in inner:
                    self._tell(one, schema, at)

    def _inner(self, schema: type[BaseModel], key: str, value: Any, at: Location) -> Any:
        annotation, metadata = schema.model_fields[key].annotation, schema.model_fields[key].metadata
        return self._value(annotation, [m for m in metadata if isinstance(m, OfKind)], value, at)

    def _value(self, annotation: Any, marks: list[OfKind], value: Any, at: Location) -> Any:
        """Check a value by its annotation: a component's section, a mapping of settings, or a collection of either."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return self._value(arguments[0], marks + [m for m in arguments[1:] if isinstance(m, OfKind)], value, at)
        if marks and not _is_collection(origin):
            if value is None and type(None) in arguments:
                return None
            return self._component(marks[0].kind, value, at)
        if origin is dict and isinstance(value, Mapping):
            return {k: self._value(arguments[1], marks, v, (*at, k)) for k, v in value.items()}
        if origin in (list, tuple) and isinstance(value, (list, tuple)):
            return [self._value(arguments[0], marks, v, (*at, i)) for i, v in enumerate(value)]
        if _is_collection(origin):
            what = "a mapping" if origin is dict else "a list"
            self._fault(at, f"expected {what}, got {_shown(value)}")
            return None
        for arm in (annotation, *arguments):
            if _is_model(arm):
                return None if value is None and type(None) in arguments else self.model(arm, value, at)
            if typing.get_origin(arm) is typing.Annotated or _is_collection(typing.get_origin(arm)):
                return None if value is None and type(None) in arguments else self._value(arm, marks, value, at)
        return value

    def _component(self, kind: str, value: Any, at: Location) -> Any:
        if isinstance(value, Section):
            return value
        names = self._registry.names(kind)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            self._fault(at, "expected a section with a 'name'", f"known: {', '.join(names)}")
            return None
        try:
            component = self._registry.get(kind, value["name"]).admitted()
            schema = component.load_schema() if component.schema else Section
        except AptError as error:
            self._fault((*at, "name"), error.message, error.hint)
            return None
        return self.model(schema, value, at)

    def _tell(self, error: ErrorDetails, schema: type[BaseModel], at: Location) -> None:
        place = (*at, *error["loc"])
        if error["type"] == "extra_forbidden":
            known = _names_at(schema, error["loc"][:-1])
            self._fault(place, "unknown key", did_you_mean(str(error["loc"][-1]), known))
        elif error["type"] == "missing":
            self._fault(place, "is missing")
        else:
            message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
            given = f", got {_shown(error['input'])}" if error["loc"] and error["type"] != "value_error" else ""
            self._fault(place, f"{message[:1].lower()}{message[1:]}{given}")

    def _fault(self, at: Location, message: str, hint: str = "") -> None:
        path = ".".join(map(str, at))
        self._document.problem(at, f"{path}: {message}" if path else message, hint)


def _holds(schema: type[BaseModel], key: str) -> bool:
    """Whether a field holds sections or settings of its own."""
    field = schema.model_fields.get(key)
    if field is None:
        return False
    return any(isinstance(m, OfKind) for m in field.metadata) or any(
        isinstance(part, OfKind) or _is_model(part) for part in _parts(field.annotation)
    )


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_collection(origin: Any) -> bool:
    return origin in (dict, list, tuple)


def _names_at(schema: Any, path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model found by walking ``path`` down from ``schema``."""
    for part in path:
        field = getattr(schema, "model_fields", {}).get(part)
        models = [p for p in _parts(field.annotation) if _is_model(p)] if field is not None else []
        if not models:
            continue  # an index or a key of a collection
        schema = models[0]
    return list(getattr(schema, "model_fields", {}))


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
