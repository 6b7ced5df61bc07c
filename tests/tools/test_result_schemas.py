"""Schemas describe what ``to_json`` prints: every value of a result keeps to them, and little else does."""

import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import result_schemas
from hypothesis import given
from hypothesis import strategies as st

from apt.console.output import emits, to_json


class Colour(Enum):
    RED = "red"
    BLUE = 2


@dataclass(frozen=True)
class Part:
    """A part.

    :param share: how much of the
        whole, ``0`` to ``1``.
    """

    share: float
    where: Path | None


@dataclass(frozen=True)
class Whole:
    """What is whole."""

    name: str
    count: int
    sound: bool
    kind: Literal["a", "b"]
    colour: Colour
    parts: tuple[Part, ...]
    pair: tuple[int, str]
    by_name: Mapping[str, Part]
    free: dict[str, Any]
    nested: "Whole | None" = None
    shown: InitVar[int] = 0


words = st.sampled_from(["", "a", "你好", 'quoted "word"', "\n"])
parts = st.builds(Part, share=st.floats(), where=st.none() | st.just(Path("a/b")))
wholes = st.deferred(
    lambda: st.builds(
        Whole,
        name=words,
        count=st.integers(),
        sound=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        colour=st.sampled_from(Colour),
        parts=st.lists(parts, max_size=3).map(tuple),
        pair=st.tuples(st.integers(), words),
        by_name=st.dictionaries(words, parts, max_size=2),
        free=st.dictionaries(words, st.integers() | st.none(), max_size=2),
        nested=st.none() | wholes,
    )
)
SCHEMA = result_schemas.schema_of([Whole], "whole")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@given(wholes)
def test_what_is_printed_keeps_to_the_schema(whole: Whole) -> None:
    VALIDATOR.validate(json.loads(to_json(whole)))


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"count": 1.5},
        {"count": None},
        {"kind": "c"},
        {"colour": "RED"},
        {"pair": [1, "a", 2]},
        {"pair": [1]},
        {"parts": [{"share": 1.0}]},
        {"parts": [{"share": "1", "where": None}]},
        {"by_name": {"a": 1}},
        {"nested": {}},
    ],
    ids=str,
)
def test_what_is_not_printed_does_not(change: dict[str, Any]) -> None:
    whole = Whole("n", 1, True, "a", Colour.RED, (), (1, "x"), {}, {})
    printed = json.loads(to_json(whole))
    VALIDATOR.validate(printed)
    assert not VALIDATOR.is_valid(printed | change)
    del printed["name"]
    assert not VALIDATOR.is_valid(printed)


def test_docstrings_tell_what_fields_mean() -> None:
    part = SCHEMA["$defs"]["Part"]
    assert part["description"] == "A part."
    assert part["properties"]["share"]["description"] == "how much of the whole, `0` to `1`."
    assert "shown" not in SCHEMA["$defs"]["Whole"]["properties"]


def test_two_classes_of_one_name_stay_apart() -> None:
    from apt.checkpoint.diagnosis import Diagnosis
    from apt.plugins.base import Diagnosis as OfPlugins

    found = result_schemas.schema_of([Diagnosis, OfPlugins], "two")
    assert found["anyOf"] == [{"$ref": "#/$defs/Diagnosis"}, {"$ref": "#/$defs/base.Diagnosis"}]


def test_an_annotation_without_a_counterpart_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="complex"):
        result_schemas.schema_of([Odd], "odd")


def test_a_command_that_declares_nothing_is_named() -> None:
    class Silent:
        @staticmethod
        def callback() -> None: ...

    with pytest.raises(SystemExit, match="apt_model some command does not declare its results"):
        result_schemas.pages({("some", "command"): Silent})


def test_emits_leaves_the_function_alone() -> None:
    @emits("a.b:C", "a.b:D")
    def command(x: int) -> int:
        return x

    assert command(3) == 3
    assert command.emitted_results == ("a.b:C", "a.b:D")
