"""Bad configs made from the good ones and from the schemas: one fault each, with the line and words it is told by."""

import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from apt.document import read
from apt.registry import Registry
from apt.training import catalog
from apt.training.config import TrainConfig
from apt.training.sections import OfKind, Section

Path = tuple[str, ...]

#: Where a component of each kind stands in a config, and what has to stand around it.
PLACES: dict[str, tuple[dict[str, Any], Path]] = {
    "loss": ({}, ("train", "loss")),
    "optimizer": ({}, ("train", "optimizer")),
    "scheduler": ({}, ("train", "scheduler")),
    "sampler": ({}, ("train", "sampler")),
    "tuning": ({}, ("train", "tuning")),
    "data": ({}, ("data", "train")),
    "teacher": ({"train": {"loss": {"name": "distill"}}}, ("train", "loss", "teacher")),
    "rollout": ({"train": {"loss": {"name": "policy"}}}, ("train", "loss", "rollout")),
    "reward": ({"train": {"loss": {"name": "policy"}}}, ("train", "loss", "rewards", "mine", "reward")),
}


@dataclass(frozen=True)
class Case:
    """A config with a fault.

    :param place: the key that the fault is told of.
    :param hint: the word that is meant, where there is a typo.
    """

    name: str
    text: str
    line: int
    place: str
    hint: str = ""


def cases(registry: Registry) -> list[Case]:
    """Return all bad configs; every key of every shipped config and of every schema has its own."""
    found = [
        *_typos_of_shipped(),
        *_of_schema("config", {}, (), TrainConfig),
        *_of_components(registry),
        *_unknown_components(registry),
        *_structure(),
    ]
    assert len({c.name for c in found}) == len(found)
    return found


def render(
    values: Mapping[str, Any], depth: int = 0, at: Path = (), first: int = 1
) -> tuple[list[str], dict[Path, int]]:
    """Return YAML lines and the line of each key: mappings one key a line, all else as JSON in one line."""
    lines: list[str] = []
    places: dict[Path, int] = {}
    for key, value in values.items():
        places[(*at, key)] = first + len(lines)
        head = f"{'  ' * depth}{json.dumps(key, ensure_ascii=False) if ' ' in key else key}:"
        if isinstance(value, Mapping) and value:
            lines.append(head)
            inner, below = render(value, depth + 1, (*at, key), first + len(lines))
            lines += inner
            places |= below
        else:
            lines.append(f"{head} {json.dumps(value, ensure_ascii=False)}")
    return lines, places


def _case(name: str, values: Mapping[str, Any], place: Path, hint: str = "") -> Case:
    lines, places = render(values)
    at = place
    while at and at not in places:
        at = at[:-1]
    return Case(name, "\n".join(lines) + "\n", places[at] if at else 1, ".".join(place), hint)


def misspelt(word: str) -> str:
    """Write the last letter twice."""
    return word + word[-1]


def keys(values: Mapping[str, Any], at: Path = ()) -> Iterator[Path]:
    for key, value in values.items():
        yield (*at, key)
        if isinstance(value, Mapping):
            yield from keys(value, (*at, key))


def put(values: Mapping[str, Any], place: Path, value: Any) -> dict[str, Any]:
    """Return a copy with a value at a place; what is missing on the way is made."""
    inner = values.get(place[0])
    if len(place) == 1:
        return {**values, place[0]: value}
    return {**values, place[0]: put(inner if isinstance(inner, Mapping) else {}, place[1:], value)}


def renamed(values: Mapping[str, Any], place: Path, word: str) -> dict[str, Any]:
    """Return a copy in which one key has another name, in the same line."""
    if len(place) == 1:
        return {word if k == place[0] else k: v for k, v in values.items()}
    return {k: renamed(v, place[1:], word) if k == place[0] else v for k, v in values.items()}


def _typos_of_shipped() -> Iterator[Case]:
    for name, path in catalog.shipped().items():
        values = read(path).value
        for place in keys(values):
            word = misspelt(place[-1])
            bad = renamed(values, place, word)
            yield _case(f"{name}: {'.'.join(place)} misspelt", bad, (*place[:-1], word), place[-1])


def _of_components(registry: Registry) -> Iterator[Case]:
    for component in registry:
        if component.kind in PLACES and component.schema:
            around, place = PLACES[component.kind]
            values = put({"train": {"steps": 1}} | around, place, {"name": component.name})
            yield from _of_schema(f"{component.kind} {component.name}", values, place, component.load_schema())


def _of_schema(title: str, around: Mapping[str, Any], at: Path, schema: type[BaseModel]) -> Iterator[Case]:
    """A typo, a wrong type and a value out of range for every field, also of the settings inside settings."""
    for name, field in schema.model_fields.items():
        if name == "name" and issubclass(schema, Section):
            continue  # the component's name has cases of its own
        place = (*at, name)
        label = f"{title}: {'.'.join(place)}"
        word = misspelt(name)
        yield _case(f"{label} misspelt", put(around, (*at, word), None), (*at, word), name)
        for i, wrong in enumerate(_wrong_values(field)):
            yield _case(f"{label} of a wrong type {i}", put(around, place, wrong), place)
        for i, wrong in enumerate(_out_of_range(field)):
            yield _case(f"{label} out of range {i}", put(around, place, wrong), place)
        for inner, below in _inner_models(field):
            yield from _of_schema(title, around, (*place, *below), inner)


def _types(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_types(a) for a in typing.get_args(annotation)))
    return {typing.Literal if origin is typing.Literal else origin or annotation}


def _is_section(field: FieldInfo) -> bool:
    return any(isinstance(m, OfKind) for m in field.metadata) or "OfKind" in repr(field.annotation)


def _wrong_values(field: FieldInfo) -> list[Any]:
    found = _types(field.annotation)
    wrong: list[Any] = [[[1]]] if str not in found and list not in found else [{"a": 1}]
    if str not in found:
        wrong.append("wrong")
    if not found & {int, float}:
        wrong.append(3)
    if bool not in found:
        wrong.append(True)
    if type(None) not in found:
        wrong.append(None)
    return wrong


def _out_of_range(field: FieldInfo) -> list[Any]:
    found: list[Any] = []
    for mark in [
        *field.metadata,
        *(m for a in typing.get_args(field.annotation) for m in getattr(a, "__metadata__", ())),
    ]:
        if isinstance(mark, annotated_types.Ge):
            found.append(mark.ge - 1)
        elif isinstance(mark, annotated_types.Gt):
            found.append(mark.gt)
        elif isinstance(mark, annotated_types.Le):
            found.append(mark.le + 1)
        elif isinstance(mark, annotated_types.Lt):
            found.append(mark.lt)
        elif isinstance(mark, annotated_types.MinLen) and not _is_section(field):
            found.append(
                {str: "", list: [], dict: {}}[next(t for t in (str, list, dict) if t in _types(field.annotation))]
            )
    if _types(field.annotation) & {int, float}:
        found.append(2**70)
    if float in _types(field.annotation):
        found.append(float("inf"))  # as JSON writes it, which is a word in YAML
    return found


def _inner_models(field: FieldInfo) -> Iterator[tuple[type[BaseModel], Path]]:
    def walk(annotation: Any, below: Path) -> Iterator[tuple[type[BaseModel], Path]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if not issubclass(annotation, Section):
                yield annotation, below
            return
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is dict:
            yield from walk(arguments[1], (*below, "mine"))
        elif origin in (typing.Union, types.UnionType, typing.Annotated):
            for argument in arguments:
                yield from walk(argument, below)

    yield from walk(field.annotation, ())


def _unknown_components(registry: Registry) -> Iterator[Case]:
    for kind, (around, place) in PLACES.items():
        base = {"train": {"steps": 1}} | around
        for name in registry.names(kind):
            values = put(base, place, {"name": misspelt(name)})
            yield _case(f"{kind} {name} misspelt", values, (*place, "name"), name)
        yield _case(f"{kind} of no such name", put(base, place, {"name": "冰淇淋"}), (*place, "name"))
        for wrong in (None, 3, "ce", [], {}, {"steps": 1}, {"name": None}, {"name": ["ce"]}):
            if wrong is None and kind == "data":
                continue
            values = put(base, place, wrong)
            at = (*place, "name") if isinstance(wrong, dict) and "name" in wrong else place
            yield _case(f"{kind} as {json.dumps(wrong)}", values, at)


#: Contradictions: what is set, and the key that is told.
_MIXED = {"train": {"name": "mixture", "parts": {"a": {"name": "text", "path": "embedded"}}}}
_ROWS = {"name": "jsonl", "path": "a.jsonl", "text": "text"}
_CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"data": _MIXED, "train": {"steps": 3, "sampler": {"name": "mixture", "weights": {"a": 1.0, "b": 1.0}}}},
        "train.sampler.weights.b",
    ),
    (
        {"data": _MIXED, "train": {"steps": 3, "sampler": {"name": "mixture", "weights": {"b": 1.0}}}},
        "train.sampler.weights",
    ),
    ({"data": {"train": {**_ROWS, "streaming": True}}, "train": {"steps": 3}}, "data.train.streaming"),
    (
        {"data": {"train": _ROWS, "eval": {**_ROWS, "streaming": True}}, "train": {"steps": 3}},
        "data.eval.streaming",
    ),
    ({"train": {"steps": 3, "early_stopping": {"patience": 1}}}, "train.early_stopping"),
    ({"train": {"steps": 3, "log_every": 5}}, "train.log_every"),
    ({"train": {"steps": 3, "sharding": "fsdp2", "loss": {"name": "distill", "on_policy": {}}}}, "train.sharding"),
    (
        {
            "train": {
                "steps": 3, "sharding": "fsdp2",
                "loss": {"name": "policy", "rewards": {"a": {"reward": {"name": "exact_answer"}}}},
            }
        },
        "train.sharding",
    ),
    ({"train": {"steps": 3, "sharding": "fsdp2", "compile": True}}, "train.sharding"),
    ({"train": {"steps": 3, "sharding": "fsdp2", "optimizer": {"name": "adafactor"}}}, "train.sharding"),
    ({"train": {"steps": 3, "loss": {"name": "distill", "k": 3}}}, "train.loss.k"),
    ({"train": {"steps": 3, "loss": {"name": "distill", "feature": {}}}}, "train.loss.feature"),
    ({"train": {"steps": 3, "loss": {"name": "distill", "relation": {}}}}, "train.loss.relation"),
    ({"train": {"steps": 3, "loss": {"name": "distill", "strategy": "mixed"}}}, "train.loss"),
    (
        {"train": {"steps": 3, "loss": {"name": "distill", "strategy": "relation", "temperature": 2.0}}},
        "train.loss.temperature",
    ),
    ({"train": {"steps": 3, "batch_rows": 1, "loss": {"name": "distill", "strategy": "relation"}}}, "train.loss"),
    (
        {
            "train": {
                "steps": 3, "batch_rows": 2,
                "loss": {"name": "distill", "strategy": "mixed", "relation": {"kind": "angle"}},
            }
        },
        "train.loss",
    ),
    ({"train": {"steps": 3}, "data": {"train": {"name": "jsonl", "path": "a.jsonl"}}}, "data.train"),
    ({"train": {"steps": 3}, "data": {"train": {"name": "jsonl", "path": "a", "prompt": "p"}}}, "data.train.prompt"),
    ({"data": {"train": {"name": "parquet", "path": "a", "text": "t", "prompt": "p"}}, "train": {}}, "data.train"),
    ({"train": {"steps": 3, "loss": {"name": "distill", "k": 3, "teacher": {"name": "memory"}}}}, "train.loss.k"),
]  # fmt: skip


def _structure() -> Iterator[Case]:
    for i, (values, place) in enumerate(_CONTRADICTIONS):
        yield _case(f"contradiction {i} {place}", values, tuple(place.split(".")))
    good = "train:\n  steps: 1\n"
    deep = "".join(f"{'  ' * n}a{n}:\n" for n in range(60)) + f"{'  ' * 60}1\n"
    yield Case(
        "two letters exchanged", f"{good}  optimizer:\n    name: adamw\n    rl: 1\n", 5, "train.optimizer.rl", "lr"
    )
    yield Case("another case", f"{good}  optimizer:\n    name: adamw\n    LR: 1\n", 5, "train.optimizer.LR", "lr")
    yield Case("a tag on a section", f"{good}  loss: !mine\n    name: ce\n", 3, "")
    yield Case("a list", "- train\n- data\n", 1, "")
    yield Case("a word", "train\n", 1, "")
    yield Case("nothing", "", 1, "")
    yield Case("a comment", "# nothing\n", 1, "")
    yield Case("a key twice", "train:\n  steps: 1\n  steps: 2\n", 3, "")
    yield Case("a section twice", f"{good}train:\n  steps: 2\n", 3, "")
    yield Case("a tag", "train:\n  steps: !!python/object/apply:os.getcwd []\n", 2, "train.steps")
    yield Case("a tag of its own", "train:\n  steps: !mine 1\n", 2, "")
    yield Case("a key that is a list", f"{good}? [a, b]\n: 1\n", 3, "")
    yield Case("an alias of itself", "train: &a\n  steps: *a\n", 1, "")
    yield Case(
        "an alias with a fault", "a: &a\n  nmae: ce\ntrain:\n  steps: 1\n  loss: *a\n", 2, "train.loss.nmae", "name"
    )
    yield Case("a merge", "a: &a {steps: 1}\ntrain:\n  <<: *a\n", 3, "train.<<")
    yield Case("no such alias", "train: *a\n", 1, "")
    yield Case("nested deep", deep, 52, "")
    yield Case("tabs", "train:\n\tsteps: 1\n", 2, "")
    yield Case("two documents", f"{good}---\n{good}", 3, "")
    yield Case("a Chinese key", f"{good}  步数: 3\n", 3, "train.步数")
    yield Case("an emoji as a key", f"{good}\U0001f600: 3\n", 3, "\U0001f600")
    yield Case("a key with a blank", f"{good}  ' steps': 3\n", 3, "train. steps", "steps")
    yield Case("an empty key", f"{good}  '': 3\n", 3, "train.")
    yield Case("a number as a key", f"{good}  3: 3\n", 3, "train.3")
    yield Case("no number", "train:\n  steps: 1\n  max_grad_norm: .nan\n", 3, "train.max_grad_norm")
    yield Case("endless", "train:\n  steps: 1\n  max_grad_norm: 1.0e+999\n", 3, "train.max_grad_norm")
    yield Case("minus endless", "train:\n  steps: 1\n  max_grad_norm: -1e999\n", 3, "train.max_grad_norm")
    yield Case("a huge number", f"train:\n  steps: {'9' * 400}\n", 2, "train.steps")
    yield Case("more digits than Python reads", f"train:\n  steps: {'9' * 5000}\n", 2, "")
    yield Case("a fraction of a step", "train:\n  steps: 1.5\n", 2, "train.steps")
    yield Case("a number in quotes", "train:\n  steps: '1'\n", 2, "train.steps")
    yield Case("an old boolean", "train:\n  steps: 1\n  compile: yes\n", 3, "train.compile")
    yield Case("a section left empty", "train:\n", 1, "train")
    yield Case("no steps", "train:\n  seed: 1\n", 1, "train.steps")
    yield Case("no section train", "model: tiny\n", 1, "train")
