"""Checking a config as a whole: every section by the schema of the component that it names, however deep it stands.

Schemas are imported to check against; models, texts and the components themselves are not. Foreign schemas may do
anything: what they raise is a fault of the config's section, told in one line with the rest.
"""

import json
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from apt.console.errors import AptError, one_line, shown
from apt.document import Document, Location
from apt.registry import Component, Registry, did_you_mean
from apt.training.plain_values import plain
from apt.training.sections import OfKind, Section, parts_of

#: What a fault of pydantic's says beside what is wrong.
_PREFIXES: Final = ("Value error, ", "Assertion failed, ", "Input ")


def check(schema: type[BaseModel], document: Document, registry: Registry) -> Any:
    """Return the document as an instance of ``schema``, with each component's own options in it.

    :raises DocumentError: with every fault, each with its line, the path of its key, and the nearest known word.
    """
    checker = _Checker(document, registry)
    value = plain(document.value, checker.fault)
    checker.settle()
    found = checker.model(schema, value, ())
    document.raise_problems()
    return found


class _Checker:
    def __init__(self, document: Document, registry: Registry) -> None:
        self._document = document
        self._registry = registry
        self._told: set[Location] = set()
        self._settled: frozenset[Location] = frozenset()

    def settle(self) -> None:
        """Say no more of the places that have a fault already: what stands there now is not what was written."""
        self._settled = frozenset(self._told)

    def model(self, schema: type[BaseModel], value: Any, at: Location) -> BaseModel | None:
        """Check one mapping against its schema, its inner sections first; ``None`` where there is a fault."""
        if isinstance(value, schema):
            return value
        if not isinstance(value, Mapping):
            self.fault(at, f"expected a mapping of settings, got {shown(value)}")
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
            self._tell(error.errors(include_url=False), schema, values, at)
        except (Exception, SystemExit) as error:
            self.fault(at, f"cannot be checked: {one_line(error)}")
        return None

    def _plain(self, schema: type[BaseModel], values: dict[str, Any], inner: frozenset[str], at: Location) -> None:
        """Note the faults of all that is no section, by JSON's rules: ``"3"`` is no number and ``true`` no 1."""
        found: list[ErrorDetails] = []
        try:
            schema.model_validate_json(json.dumps(values, default=_as_json), strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False)
            whole = any(not one["loc"] for one in found)
        except (Exception, SystemExit):
            whole = True
        else:
            whole = False
        if whole:  # a validator of the whole model spoke before the fields did: it is heard when they are sound
            found = _faults_by_field(schema, {k: v for k, v in values.items() if k not in inner})
        self._tell([one for one in found if one["loc"][0] not in inner], schema, values, at)

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
            self.fault(at, f"expected {what}, got {shown(value)}")
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
            self._unnamed(value, names, at)
            return None
        schema = self._schema(kind, value["name"], (*at, "name"))
        return None if schema is None else self.model(schema, value, at)

    def _unnamed(self, value: Any, names: list[str], at: Location) -> None:
        """Note that a section names no component: perhaps the word ``name`` is misspelt."""
        known = f"known: {', '.join(names)}" if names else "none is known"
        if isinstance(value, Mapping) and "name" not in value:
            misspelt = next((key for key in value if _nearest(key, ["name"])), None)
            if misspelt is not None:
                self.fault((*at, misspelt), "unknown key", did_you_mean(misspelt, ["name"]))
                return
        place = (*at, "name") if isinstance(value, Mapping) and "name" in value else at
        self.fault(place, "expected a section with a 'name'", known)

    def _schema(self, kind: str, name: str, at: Location) -> type[BaseModel] | None:
        """Import the schema of a component; whatever that raises is a fault of this section."""
        component: Component | None = None
        try:
            component = self._registry.get(kind, name).admitted()
            schema = component.load_schema() if component.schema else Section
        except AptError as error:
            self.fault(at, error.message, error.hint)
            return None
        except (Exception, SystemExit) as error:
            self.fault(at, f"the {kind} {name!r}{_owner(component)} cannot be imported: {one_line(error)}")
            return None
        if not (isinstance(schema, type) and issubclass(schema, Section)):
            self.fault(at, f"the {kind} {name!r}{_owner(component)} has a schema that is no Section")
            return None
        return schema

    def _tell(
        self, errors: list[ErrorDetails], schema: type[BaseModel], values: Mapping[str, Any], at: Location
    ) -> None:
        """Note pydantic's faults; those of a value that fits none of several types are one."""
        places: dict[Location, list[ErrorDetails]] = {}
        for error in errors:
            places.setdefault(_place(error, schema, values), []).append(error)
        unknown = [place for place, found in places.items() if found[0]["type"] == "extra_forbidden"]
        meant = {(*place[:-1], _nearest(str(place[-1]), _names_at(schema, place[:-1]))) for place in unknown}
        for place, found in places.items():
            if found[0]["type"] == "missing" and place in meant:
                continue  # it is there, misspelt
            self._tell_one(found, schema, at, place)

    def _tell_one(self, found: list[ErrorDetails], schema: type[BaseModel], at: Location, place: Location) -> None:
        first = found[0]
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(str(place[-1]), _names_at(schema, place[:-1]))
            self.fault((*at, *place), "unknown key", hint)
        elif first["type"] == "missing":
            self.fault((*at, *place), "is missing")
        else:
            message = ", or ".join(dict.fromkeys(_message(error) for error in found))
            ours = first["type"] in ("value_error", "assertion_error")
            given = "" if ours or not place else f", got {shown(first['input'])}"
            if first["type"] == "value_error":
                place, message = self._meant(at, place, message)
            self.fault((*at, *place), f"{message}{given}", _nearest_literal(first))

    def _meant(self, at: Location, place: Location, message: str) -> tuple[Location, str]:
        """Return where a contradiction stands: the key that its message begins with, where the document has it."""
        path, colon, rest = message.partition(": ")
        keys = tuple(path.split("."))
        if colon and (*at, *place, *keys) in self._document.lines:
            return (*place, *keys), rest
        word = re.match(r"'?(\w+)", message)
        if word and word[1] != "name" and (*at, *place, word[1]) in self._document.lines:
            return (*place, word[1]), message
        return place, message

    def fault(self, at: Location, message: str, hint: str = "") -> None:
        """Note a fault."""
        if at in self._settled:
            return
        self._told.add(at)
        path = ".".join(map(str, at))
        self._document.problem(at, f"{path}: {message}" if path else message, hint)


def _faults_by_field(schema: type[BaseModel], values: Mapping[str, Any]) -> list[ErrorDetails]:
    """Return the faults of each value by itself, without the validators of the model."""
    found: list[ErrorDetails] = []
    for key, value in values.items():
        field = schema.model_fields.get(key)
        if field is None:
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(typing.Annotated[(field.annotation, *(field.metadata or [None]))])  # type: ignore[arg-type]
        try:
            adapter.validate_json(json.dumps(value, default=_as_json), strict=True)
        except ValidationError as error:
            found += [{**one, "loc": (key, *one["loc"])} for one in error.errors(include_url=False)]
    return found


def _place(error: ErrorDetails, schema: type[BaseModel], values: Mapping[str, Any]) -> Location:
    """Return where in the values a fault stands: without the names of types that pydantic puts into its places."""
    place: list[str | int] = []
    value: Any = values
    for i, part in enumerate(error["loc"]):
        if isinstance(value, Mapping) and (
            part in value or (error["type"] == "missing" and i == len(error["loc"]) - 1)
        ):
            place.append(part)
            value = value.get(str(part))
        elif isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return tuple(place)


def _message(error: ErrorDetails) -> str:
    text = error["msg"]
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    text = " ".join(text.split()).replace("valid array", "valid list")
    return text if error["type"] in ("value_error", "assertion_error") else f"{text[:1].lower()}{text[1:]}"


def _nearest_literal(error: ErrorDetails) -> str:
    """Return the nearest of the words that could stand there; they are all in the message."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    known = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
    return did_you_mean(error["input"], known) if _nearest(error["input"], known) else ""


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is meant; ``""`` for none."""
    hint = did_you_mean(word, known)
    return hint.removeprefix("did you mean '").removesuffix("'?") if hint.startswith("did you mean") else ""


def _owner(component: Component | None) -> str:
    return f" of the plugin {component.plugin!r}" if component is not None and component.plugin else ""


def _holds(schema: type[BaseModel], key: str) -> bool:
    """Whether a field holds sections or settings of its own."""
    field = schema.model_fields.get(key)
    if field is None:
        return False
    return any(isinstance(m, OfKind) for m in field.metadata) or any(
        isinstance(part, OfKind) or _is_model(part) for part in parts_of(field.annotation)
    )


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_collection(origin: Any) -> bool:
    return origin in (dict, list, tuple)


def _names_at(schema: Any, path: Location) -> list[str]:
    """Names of the fields of the model found by walking ``path`` down from ``schema``."""
    for part in path:
        field = getattr(schema, "model_fields", {}).get(part)
        models = [p for p in parts_of(field.annotation) if _is_model(p)] if field is not None else []
        if not models:
            continue  # an index or a key of a collection
        schema = models[0]
    return list(getattr(schema, "model_fields", {}))


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
