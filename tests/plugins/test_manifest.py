"""plugin.toml: everything in it is checked before anybody relies on it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.console.errors import BadInputError
from apt.plugins.manifest import parse, read_manifest

GOOD = """
[plugin]
name = "greet"
description = "问好 👋"
api = 1
required_dependencies = ["torch>=2"]
hooks = ["after_operation"]
[[plugin.commands]]
name = "greet"
target = "greet_plugin.commands:greet"
options = ["--name=", "--loud"]
[[plugin.components]]
kind = "scheduler"
name = "greet-constant"
target = "greet_plugin.schedulers:constant"
"""


def test_every_field_is_read() -> None:
    assert parse(GOOD.encode(), "greet") == {
        "name": "greet",
        "description": "问好 👋",
        "api": 1,
        "required_dependencies": ["torch>=2"],
        "hooks": ["after_operation"],
        "commands": [
            {
                "name": "greet",
                "target": "greet_plugin.commands:greet",
                "help": "",
                "options": ["--name=", "--loud"],
            }
        ],
        "components": [
            {
                "kind": "scheduler",
                "name": "greet-constant",
                "target": "greet_plugin.schedulers:constant",
                "schema": "",
                "summary": "",
            }
        ],
    }


def test_one_of_several_is_found_by_its_name() -> None:
    text = b'[[plugin]]\nname = "a"\nversion = "1"\n[[plugin]]\nname = "b-c"\nversion = "2"\n'
    assert parse(text, "b_c")["version"] == "2"
    assert parse(text, "d") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[plugin", "plugin.toml: "),
        ("\ufffd", "plugin.toml: "),
        ("plugin = 3", "plugin is not a table"),
        ("[plugin]\nnmae = 'x'", "unknown field 'nmae'"),
        ("[plugin]\napi = true", "api = True is not what that field holds"),
        ("[plugin]\nrequires = 'x'", "requires = 'x' is not"),
        ("[plugin]\nhooks = ['after_operatoin']", "no hook is called 'after_operatoin'"),
        ("[plugin]\nhooks = 'x'", "hooks is not a list"),
        ("[plugin]\ncommands = 1", "commands is not a list of tables"),
        ("[[plugin.commands]]\nname = 'a b'", "bad name 'a b' in commands"),
        ("[[plugin.commands]]\nname = 'a'\ntarget = '../x'", "bad target '../x'"),
        ("[[plugin.commands]]\nname = 'a'\noptions = [1]", "options is not a list of strings"),
        ("[[plugin.commands]]\nname = 'a'\nhlep = 'x'", "unknown field commands.hlep"),
        ("[[plugin.components]]\nname = 'a'\nkind = 'lsos'", "unknown component kind 'lsos'"),
        ("[[plugin.components]]\nname = 'a'\nkind = 1", "components.kind is not a string"),
        ("x = " + "[" * 20_000, "plugin.toml: "),
        ("#" * (1 << 21), "larger than 64 KiB"),
    ],
)
def test_faults_are_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse(text.encode("latin-1", "replace") if text == "\ufffd" else text.encode(), "x")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_is_empty_and_unreadable_is_told(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "plugin.toml", "x") == {}
    (tmp_path / "plugin.toml").mkdir()
    with pytest.raises(BadInputError, match=r"plugin\.toml (is not a regular file|cannot be read)"):
        read_manifest(tmp_path / "plugin.toml", "x")


@given(st.data())
def test_damaged_manifests_give_facts_or_one_line(data: st.DataObject) -> None:
    damaged = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(damaged), "greet")
    except BadInputError as error:
        assert "\n" not in str(error)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plugin.toml")
    with pytest.raises(BadInputError, match=r"plugin\.toml (is not a regular file|cannot be read)"):
        read_manifest(tmp_path / "plugin.toml", "x")
