"""Checking a whole recipe before anything runs: every name, option, type and reference.

Schemas and result types are imported to check against; the operations' heavy libraries are not, as they are imported
on use.
"""

import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from apt.console.errors import AptError, explain
from apt.document import Location
from apt.recipes import references
from apt.recipes.conditions import ConditionFault
from apt.recipes.references import ReferenceFault
from apt.recipes.schema import Recipe, Step, check_inputs
from apt.registry import Component, Registry, did_you_mean


def validate(recipe: Recipe, registry: Registry, out: Path) -> None:
    """Check a recipe against the operations that are installed.

    :raises DocumentError: with every fault, each with its line.
    """
    _Validator(recipe, registry, out).run()
    recipe.document.raise_problems()


class _Validator:
    def __init__(self, recipe: Recipe, registry: Registry, out: Path) -> None:
        self._recipe = recipe
        self._document = recipe.document
        self._registry = registry
        self._scope = {"inputs": recipe.inputs, "out": str(out)}
        self._results: dict[str, Any] = {}  # type of each earlier step's result

    def run(self) -> None:
        active = self._active()
        names = [s.name for s in self._recipe.steps]
        seen: set[str] = set()
        for step in self._recipe.steps:
            if step in active and step.name in seen:
                self._document.problem((*step.location, "name"), f"two steps are called {step.name!r}")
            self._step(step, names, is_active=step in active)
            if step in active:
                seen.add(step.name)

    def _active(self) -> list[Step]:
        found = []
        for step in self._recipe.steps:
            try:
                if step.when is None or step.when.holds(self._scope):
                    found.append(step)
            except ConditionFault as fault:
                self._document.problem((*step.location, "when"), fault.message, fault.hint)
        return found

    def _step(self, step: Step, names: list[str], *, is_active: bool) -> None:
        component = self._operation(step)
        place = (*step.location, "with")
        pending = {
            location
            for location, text in references.strings(step.options, place)
            if self._references(step, location, text, names, is_active=is_active)
        }
        schema = self._load(step, component) if component else None
        if schema is not None:
            self._options(step, schema, pending)
        result = _result_type(component) if component else Any
        for i, condition in enumerate(step.expect):
            location = (*step.location, "expect", i)
            self._references(step, location, condition.right, names, is_active=is_active)
            if condition.field is not None:
                self._field(result, condition.field, location)
        if is_active:
            self._results[step.name] = result

    def _operation(self, step: Step) -> Component | None:
        try:
            return self._registry.get("operation", step.operation)
        except AptError:
            known = self._registry.names("operation")
            location = (*step.location, "operation")
            hint = did_you_mean(step.operation, known)
            self._document.problem(location, f"unknown operation {step.operation!r}", hint)
            return None

    def _load(self, step: Step, component: Component) -> type[BaseModel] | None:
        try:
            schema = component.load_schema()
            component.load()
        except Exception as error:  # whatever a plugin's module does when it is imported
            known = explain(error)
            reason = str(known) if known else f"{type(error).__name__}: {error}"
            location = (*step.location, "operation")
            self._document.problem(location, f"operation {step.operation!r} cannot be loaded: {reason}")
            return None
        assert isinstance(schema, type) and issubclass(schema, BaseModel)
        return schema

    def _references(self, step: Step, location: Location, text: str, names: list[str], *, is_active: bool) -> bool:
        """Check the references of one string; return whether it has to wait for a step's result."""
        found = check_inputs(self._recipe, location, text)
        for reference in found:
            if reference.step is None:
                continue
            if reference.step in self._results:
                self._field(self._results[reference.step], reference.parts[2:], location)
            elif is_active or reference.step not in names:
                self._unknown_step(step, reference.step, names, location)
        return any(r.reads_steps for r in found)

    def _unknown_step(self, step: Step, name: str, names: list[str], location: Location) -> None:
        if name == step.name:
            self._document.problem(location, f"step {name!r} refers to itself")
        elif name in names[: names.index(step.name)]:
            self._document.problem(location, f"step {name!r} does not run with these inputs", "see its 'when'")
        elif name in names:
            hint = "a step reads only earlier ones"
            self._document.problem(location, f"step {name!r} comes later than {step.name!r}", hint)
        else:
            self._document.problem(location, f"unknown step {name!r}", did_you_mean(name, names))

    def _field(self, annotation: Any, parts: tuple[str, ...], location: Location) -> None:
        try:
            references.check_field(annotation, parts)
        except ReferenceFault as fault:
            self._document.problem(location, fault.message, fault.hint)

    def _options(self, step: Step, schema: type[BaseModel], pending: Iterable[Location]) -> None:
        place = (*step.location, "with")
        try:
            resolved = references.resolve(step.options, self._scope, keep_steps=True)
        except ReferenceFault:
            return  # noted with its reference
        waiting = [p[len(place) :] for p in pending]
        for error in option_errors(schema, resolved):
            path = tuple(error["loc"])
            if any(path[: len(w)] == w for w in waiting) and error["type"] != "extra_forbidden":
                continue  # its value is not known yet
            message, hint = describe(error, schema, step)
            self._document.problem((*place, *path), message, hint)


def option_errors(schema: type[BaseModel], options: dict[str, Any]) -> list[ErrorDetails]:
    """Validate options strictly (``"3"`` is no number, ``true`` no 1); return the faults."""
    try:
        schema.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False, include_input=True)
    return []


def describe(error: ErrorDetails, schema: type[BaseModel], step: Step) -> tuple[str, str]:
    """Tell a fault of pydantic in our words: message and hint."""
    path = tuple(error["loc"])
    name = ".".join(str(p) for p in path)
    if error["type"] == "extra_forbidden":
        known = _names_at(schema, path[:-1])
        where = f"operation {step.operation!r}"
        return f"unknown option {name!r} of {where}", did_you_mean(str(path[-1]), known)
    if error["type"] == "missing":
        return f"option {name!r} of operation {step.operation!r} is missing", ""
    what = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = error.get("input")
    shown = f"{given!r} " if isinstance(given, (str, int, float, bool)) else ""
    option = f"option {name!r} of step {step.name!r}" if name else f"step {step.name!r}"
    return f"{option}: {shown}{what}", ""


def _names_at(schema: Any, path: tuple[Any, ...]) -> list[str]:
    """Option names of the (nested) model that a fault's place leads to."""
    for part in path:
        fields = getattr(schema, "model_fields", {})
        if part not in fields:
            return []
        annotation = fields[part].annotation
        arms = [a for a in (annotation, *typing.get_args(annotation)) if hasattr(a, "model_fields")]
        if not arms:
            return []
        schema = arms[0]
    return [info.alias or name for name, info in getattr(schema, "model_fields", {}).items()]


def _result_type(component: Component) -> Any:
    """The annotated result of an operation; ``Any`` when it has none that can be read."""
    try:
        return typing.get_type_hints(component.load()).get("return", Any)
    except Exception:  # an annotation that only a type checker can see
        return Any
