"""The page ``docs/configuration.md``: components with their options, recipes, environment variables."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import environment_variables

ROOT: Final = Path(__file__).resolve().parent.parent

_HEAD: Final = """# Configuration

Generated from the code by `make docs`: what a recipe, a training config and the environment may say.

A component is chosen by kind and name. Options are checked as a whole before anything is read: unknown keys, wrong
types and values out of range are refused with the nearest known word. An option without a default has to be given;
`null` in a default or type stands for an option that is absent.
"""
_LIMITS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minItems": "at least {} items",
}
_TYPES: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true, false",
    "null": "null",
    "object": "mapping",
}


def page(plugins: set[str]) -> str:
    """Return the page.

    :param plugins: names of the plugins whose components belong to it.
    :raises SystemExit: naming an option or a variable that is not described.
    """
    from apt.plugins import host
    from apt.registry import KINDS
    from apt.training.config import TrainConfig

    components = [c for c in host.registry() if c.plugin in plugins or not c.plugin]
    parts = [_HEAD]
    for kind, meaning in KINDS.items():
        parts.append(f"## Kind `{kind}`\n\nA target is {meaning}.\n")
        for component in sorted((c for c in components if c.kind == kind), key=lambda c: c.name):
            parts.append(_component(component))
    parts += [
        "## Training config\n\nWhat `train --config` reads; `distill` makes it of its options and keeps it in its result.\n",
        options_table(TrainConfig, "the training config"),
        *_recipes(),
        *_environment(),
    ]
    return "\n".join(parts)


def _component(component: Any) -> str:
    owner = f"Plugin `{component.plugin}`." if component.plugin else "Core."
    head = f"### `{component.name}`\n\n{component.summary[:1].upper()}{component.summary[1:]}. {owner}\n"
    if not component.schema:
        return f"{head}\nNo options of its own.\n"
    return f"{head}\n{options_table(component.load_schema(), f'{component.kind} {component.name}')}"


def options_table(model: Any, where: str) -> str:
    """Return the options of a pydantic model as a table, and below it the objects that they hold.

    :raises SystemExit: naming an option that is not described.
    """
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = ["| option | type | default | what it is |\n|---|---|---|---|\n"]
    for name, found in schema["properties"].items():
        if not found.get("description"):
            raise SystemExit(f"option {name} of {where} has no description: Field(description=…)")
        default = "" if name in schema.get("required", ()) else _code(_default(model, name, found))
        rows.append(f"| `{name}` | {_cell(_type(found))} | {default} | {_cell(found['description'])} |\n")
    objects = [f"- `{name}`: {_object(inner)}" for name, inner in definitions.items() if inner.get("type") == "object"]
    return "".join(rows) + ("\nObjects in it:\n\n" + "\n".join(objects) + "\n" if objects else "")


def _default(model: Any, name: str, found: dict[str, Any]) -> Any:
    if "default" in found:
        return found["default"]
    field = next(f for n, f in model.model_fields.items() if (f.alias or n) == name)
    return field.get_default(call_default_factory=True)


def _object(schema: dict[str, Any]) -> str:
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    fields = "; ".join(f"`{n}` {_type(p)}{'' if n in required else ', optional'}" for n, p in properties.items())
    meaning = schema.get("description", "").partition("\n")[0].rstrip(".").replace("``", "`")
    return f"{meaning}. Keys: {fields}" if meaning else fields


def _type(found: dict[str, Any]) -> str:
    """Return a JSON Schema's type, legal values and limits in words."""
    if "$ref" in found:
        return f"`{found['$ref'].rpartition('/')[2]}`"
    if "anyOf" in found:
        return " or ".join(dict.fromkeys(_type(arm) for arm in found["anyOf"]))
    if "const" in found:
        return _code(found["const"])
    if "enum" in found:
        return ", ".join(_code(value) for value in found["enum"])
    kind = found.get("type", "")
    if kind == "array":
        return "list of " + _type(found.get("items", {})) + _limits(found)
    if kind == "object" and found.get("additionalProperties") not in (None, True, False):
        return f"mapping to {_type(found['additionalProperties'])}"
    name = "path" if found.get("format") == "path" else _TYPES.get(kind, "any value")
    return name + _limits(found)


def _limits(found: dict[str, Any]) -> str:
    limits = [words.format(_number(found[key])) for key, words in _LIMITS.items() if key in found]
    return f" ({', '.join(limits)})" if limits else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`" if not isinstance(value, str) or not value else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _recipes() -> Iterator[str]:
    from apt.recipes import conditions, references, schema
    from apt.recipes.catalog import shipped

    yield "## Recipes\n\nA YAML file; how steps are chained and what is run again is in [recipes.md](recipes.md).\n"
    for title, keys in (("Keys of a recipe", schema.RECIPE_KEYS), ("Keys of a step", schema.STEP_KEYS)):
        yield f"### {title}\n\n| key | what it holds |\n|---|---|\n" + "".join(
            f"| `{key}` | {_cell(text)} |\n" for key, text in keys.items()
        )
    yield f"### References\n\n{_prose(references)}\n"
    yield f"### Conditions\n\n{_prose(conditions)}\n"
    for name, path in sorted(shipped().items()):
        recipe = schema.read_recipe(path)
        inputs = "".join(f"| `{key}` | {_code(value)} |\n" for key, value in recipe.inputs.items())
        yield f"### Inputs of `{name}`\n\n{recipe.description}\n\n| input | default |\n|---|---|\n{inputs}"


def _prose(module: Any) -> str:
    return (inspect.getdoc(module) or "").replace("``", "`")


def _environment() -> Iterator[str]:
    faults = environment_variables.faults(environment_variables.read_in(ROOT / "apt", ROOT / "apt_model"))
    if faults:
        raise SystemExit("tools/environment_variables.py: " + "; ".join(faults))
    yield "## Environment variables\n\n| variable | what it does |\n|---|---|\n" + "".join(
        f"| `{name}` | {text} |\n" for name, text in environment_variables.READ.items()
    )
    yield (
        "Libraries beneath read theirs; those that matter here:\n\n| variable | read by, and what for |\n|---|---|\n"
        + ("".join(f"| `{name}` | {text} |\n" for name, text in environment_variables.OF_LIBRARIES.items()))
    )
