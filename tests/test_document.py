"""YAML that is written is YAML that is read: the same values, whatever the words look like."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.document import DocumentError, dump, parse

WORDS = [
    "no",
    "yes",
    "1e5",
    "1_000",
    "0x10",
    "0o7",
    "1:30",
    "~",
    "null",
    ".5",
    "1e-4",
    "2024-01-01",
    "=",
    "<<",
    "",
    " ",
]

_texts = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=8)
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(_texts, _trees, min_size=1, max_size=4))
def test_what_is_written_reads_as_it_was(values: dict[str, Any]) -> None:
    assert parse(dump(values), "x").value == values


@pytest.mark.parametrize("word", WORDS)
def test_a_text_that_looks_like_something_else_stays_a_text(word: str) -> None:
    assert parse(dump({"path": word, word: 1}), "x").value == {"path": word, word: 1}


def test_every_level_is_indented_by_two_and_nothing_is_an_alias() -> None:
    inner = {"parts": ["a", {"b": "中文"}]}
    text = dump({"first": inner, "second": inner})
    assert text == ("first:\n  parts:\n    - a\n    - b: 中文\nsecond:\n  parts:\n    - a\n    - b: 中文\n")


@pytest.mark.parametrize("value", ["!mine {a: 1}", "!mine [1]", "!!python/object/apply:os.getcwd []", "!!set {a, b}"])
def test_a_tag_is_refused_on_whatever_it_stands(value: str) -> None:
    with pytest.raises(DocumentError, match=r"x:2: the tag .* is not allowed here"):
        parsed = parse(f"a: 1\nb: {value}\n", "x")
        parsed.raise_problems()
