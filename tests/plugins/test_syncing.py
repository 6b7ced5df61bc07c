"""A set of plugins that was locked is the same set in another environment; hostile locks change nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]


def test_set_is_restored_in_a_fresh_environment(
    environment: Make, make_wheel: Make, plugin_source: Make, tmp_path: Path
) -> None:
    here, there = environment("here"), environment("there")
    helper = make_wheel("made-helper", plugin=None)
    wheel = make_wheel("greet-plugin", plugin="greet", requires=("made-helper>=1",))
    here.drop("hello.py", plugin_source("hello"))
    here.drop("big/__init__.py", plugin_source("big", top="from .part import X"))
    here.drop("big/part.py", b"X = b'\xff'" if False else "X = '中文'\n")
    done = here.json("plugin", "install", wheel, helper.name, code=4)  # a bare file name is no path here
    assert "is neither" in done["error"]["message"] or "brings no plugin" in done["error"]["message"]
