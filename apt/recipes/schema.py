"""The shape of a recipe: inputs with defaults, and steps that name an operation and its options."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apt.console.errors import UsageError
from apt.document import Document, Location, read, scalar
from apt.recipes import references
from apt.recipes.conditions import Condition, ConditionFault
from apt.recipes.references import ReferenceFault
from apt.registry import did_you_mean

#: Keys of a recipe and what they hold; the first word is the type.
RECIPE_KEYS: Final = {
    "title": "text; the file's name when absent",
    "description": "text; what the recipe is for",
    "inputs": "mapping of names to defaults: text, a number, true or false; without a value: given by --set",
    "steps": "list of steps, one at least; run in this order",
}
#: Keys of a step.
STEP_KEYS: Final = {
    "name": "text of small letters, digits, _ and -; what later steps call its result; required",
    "operation": "text; the name of a component of kind operation; required",
    "with": "mapping of the operation's options; strings may hold references",
    "when": "text; a condition on the inputs, such as '${inputs.text} == self'; else the step is left out",
    "expect": "list of conditions on the result, such as 'perplexity.value <= 10'; one that fails ends the run with 10",
}
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
_NAME_HINT: Final = "small letters, digits, _ and -"


@dataclass(frozen=True, slots=True)
class Step:
    """One step as written.

    :param options: the operation's options; strings may hold references.
    :param when: whether the step takes part; decided by the inputs, before anything runs.
    :param expect: what its result must satisfy.
    :param location: where it stands in the document.
    """

    name: str
    operation: str
    options: dict[str, Any]
    when: Condition | None
    expect: tuple[Condition, ...]
    location: Location


@dataclass(slots=True)
class Recipe:
    """A recipe as written, with the document that knows its lines.

    :param inputs: the inputs' values: the defaults, and what ``--set`` gave in their place.
    """

    name: str
    document: Document
    title: str = ""
    description: str = ""
    inputs: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def active_steps(self) -> list[Step]:
        """The steps that take part with these inputs, in order."""
        scope = {"inputs": self.inputs}
        return [s for s in self.steps if s.when is None or s.when.holds(scope)]


def read_recipe(path: Path, settings: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe and check its shape; operations and options are checked by :mod:`apt.recipes.validation`.

    :param settings: inputs given on the command line, as text.
    :raises DocumentError: never here for faults of shape: they are collected in ``recipe.document.problems``.
    :raises UsageError: for a setting that the recipe does not have or that is of the wrong type.
    """
    document = read(path)
    recipe = Recipe(path.stem, document)
    if not isinstance(document.value, dict):
        document.problem((), "a recipe is a mapping with the key 'steps'")
        return recipe
    document.check_keys((), document.value, RECIPE_KEYS, "the recipe")
    recipe.title = _text(document, "title") or path.stem
    recipe.description = _text(document, "description")
    recipe.inputs = _inputs(document)
    _apply(recipe, settings or {})
    steps = document.value.get("steps")
    if not isinstance(steps, list) or not steps:
        place: Location = ("steps",) if "steps" in document.value else ()
        document.problem(place, "'steps' must be a list with at least one step")
        return recipe
    recipe.steps = [s for i, raw in enumerate(steps) if (s := _step(document, ("steps", i), raw)) is not None]
    return recipe


def _text(document: Document, key: str) -> str:
    value = document.value.get(key, "")
    if not isinstance(value, str):
        document.problem((key,), f"{key!r} must be text")
        return ""
    return value.strip()


def _inputs(document: Document) -> dict[str, Any]:
    raw = document.value.get("inputs", {})
    if not isinstance(raw, dict):
        document.problem(("inputs",), "'inputs' must be a mapping from names to defaults")
        return {}
    for name, value in raw.items():
        if not _NAME.fullmatch(name):
            document.problem(("inputs", name), f"{name!r} cannot be the name of an input", _NAME_HINT)
        if isinstance(value, (dict, list)):
            document.problem(("inputs", name), f"the default of input {name!r} must be text, a number, true or false")
    return dict(raw)


def _apply(recipe: Recipe, settings: Mapping[str, str]) -> None:
    """Put the settings in place of the defaults, each as the type of its default."""
    for name, text in settings.items():
        if name not in recipe.inputs:
            raise UsageError(f"{recipe.name} has no input {name!r}", hint=did_you_mean(name, recipe.inputs))
        default = recipe.inputs[name]
        value: Any = text if isinstance(default, str) else scalar(text)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is None:
            value = text if value is None else value
        elif type(value) is not type(default):
            raise UsageError(f"input {name!r} of {recipe.name} must be {_KIND[type(default)]}, not {text!r}")
        recipe.inputs[name] = value
    for name, value in recipe.inputs.items():
        if value is None:
            recipe.document.problem(("inputs", name), f"input {name!r} has no value", f"give it: --set {name}=…")


_KIND: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _step(document: Document, location: Location, raw: Any) -> Step | None:
    if not isinstance(raw, dict):
        document.problem(location, "a step is a mapping with the keys 'name' and 'operation'")
        return None
    name, operation = raw.get("name"), raw.get("operation")
    document.check_keys(location, raw, STEP_KEYS, f"step {name!r}" if isinstance(name, str) else "a step")
    if not isinstance(name, str):
        document.problem((*location, "name"), "a step needs a name")
        return None
    if not _NAME.fullmatch(name):
        document.problem((*location, "name"), f"{name!r} cannot be the name of a step", _NAME_HINT)
    if not isinstance(operation, str):
        document.problem((*location, "operation"), f"step {name!r} needs an operation")
        return None
    options = raw.get("with", {})
    if not isinstance(options, dict):
        document.problem((*location, "with"), f"'with' of step {name!r} must be a mapping of options")
        options = {}
    when = _condition(document, (*location, "when"), raw["when"]) if "when" in raw else None
    if when is not None and any(r.parts[0] != "inputs" for r in when.references):
        document.problem((*location, "when"), "'when' may read inputs only", "it is decided before anything runs")
        when = None
    return Step(name, operation, options, when, _expectations(document, location, raw), location)


def _expectations(document: Document, location: Location, raw: dict[str, Any]) -> tuple[Condition, ...]:
    place = (*location, "expect")
    expect = raw.get("expect", [])
    if not isinstance(expect, list):
        document.problem(place, "'expect' must be a list of conditions such as 'perplexity.value <= 10'")
        return ()
    found = [_condition(document, (*place, i), text) for i, text in enumerate(expect)]
    return tuple(c for c in found if c is not None)


def _condition(document: Document, location: Location, text: Any) -> Condition | None:
    try:
        return Condition.parse(text)
    except (ConditionFault, ReferenceFault) as fault:
        document.problem(location, fault.message, fault.hint)
        return None


def check_inputs(recipe: Recipe, location: Location, text: str) -> list[references.Reference]:
    """Return the references of a string whose inputs exist; note a fault for every other."""
    try:
        found = references.parse(text)
    except ReferenceFault as fault:
        recipe.document.problem(location, fault.message, fault.hint)
        return []
    for reference in found:
        if reference.parts[0] == "inputs" and reference.parts[1] not in recipe.inputs:
            hint = did_you_mean(reference.parts[1], recipe.inputs)
            recipe.document.problem(location, f"unknown input {reference.parts[1]!r}", hint)
    return found
