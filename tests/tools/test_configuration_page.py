"""The reference of configuration: nothing that the code reads is left undescribed."""

from typing import Annotated, Literal

import configuration_page
import environment_variables
import pytest
from pydantic import Field

from apt.options import ModelRef, Options


def test_every_way_of_reading_the_environment_is_found() -> None:
    source = """
import os
from os import environ, getenv
a = os.environ.get("A"), os.environ["B"], os.getenv("C"), environ.get("D", ""), getenv("E")
if "F" in os.environ or "G" not in environ:
    os.environ.setdefault("H", "1")
os.environ["SET"] = "1"
name = "x"
b = os.environ[name], {}.get("NO"), "NO" in {}
"""
    found = [name for _, name in environment_variables.reads(source)]
    assert sorted(found) == ["?", "A", "B", "C", "D", "E", "F", "G", "H"]


def test_a_variable_that_is_not_described_is_told(tmp_path) -> None:
    (tmp_path / "code.py").write_text('import os\nx = os.environ.get("NEW_ONE")\n')
    read = environment_variables.read_in(tmp_path)
    faults = environment_variables.faults(read)
    assert any("NEW_ONE is read at" in fault and "code.py:2" in fault for fault in faults)
    assert any(fault == "APT_HOME is described but nowhere read" for fault in faults)


class Described(Options):
    model: ModelRef
    ratio: float = Field(default=0.5, gt=0, le=1, description="A share | of all.")
    kind: Literal["a", "b"] | None = Field(default=None, description="Which.")
    names: list[Annotated[str, "mark"]] = Field(default_factory=list, min_length=1, description="Names.")


def test_options_are_told_with_type_default_and_legal_values() -> None:
    assert configuration_page.options_table(Described, "x").splitlines()[2:] == [
        "| `model` | text |  | A path, a name in the store, tiny, or hf:owner/name[@revision]. |",
        "| `ratio` | number (more than 0, at most 1) | `0.5` | A share \\| of all. |",
        "| `kind` | `a`, `b` or null | `null` | Which. |",
        "| `names` | list of text (at least 1 items) | `[]` | Names. |",
    ]


class Undescribed(Options):
    width: int = 3


def test_an_option_without_description_is_named() -> None:
    with pytest.raises(SystemExit, match="option width of loss x has no description"):
        configuration_page.options_table(Undescribed, "loss x")
