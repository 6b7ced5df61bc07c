"""Searching: installed, bundled and offered plugins, in any script and case."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.plugins import host, search

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def fresh_host() -> Any:
    yield
    host.refresh()


def test_words_are_found_in_any_script_and_width(tmp_path: Path, dropin: Make, plugin_source: Make) -> None:
    dropin("here.py", plugin_source("here"))
    path = tmp_path / "the index.json"
    path.write_text(
        json.dumps({"plugins": [
            {"name": "zh", "description": "模型剪枝与量化", "requirement": "zh-plugin", "version": "1.0"},
            {"name": "here", "description": "elsewhere", "requirement": "here>=2", "homepage": "https://example.org"},
        ]})
    )  # fmt: skip

    def found(text: str) -> list[str]:
        return [h.name for h in search.search(text, index=str(path)).plugins]

    assert found("剪枝") == ["zh"]
    assert found("ＺＨ 量化") == ["zh"]  # full width
    assert found("PRUNE") == ["model-pruning"]
    assert found("hello HERE") == ["here"]
    assert found("nonsense") == []
    everything = {h.name: h for h in search.search(index=str(path)).plugins}
    assert (everything["zh"].state, everything["zh"].install) == (
        "available", f"apt_model plugin install zh --index '{path}'"
    )  # fmt: skip
    assert (everything["here"].state, everything["here"].install) == ("untried", "")
    assert everything["here"].homepage == "https://example.org"


def test_incomplete_plugins_show_what_completes_them(dropin: Make, plugin_source: Make) -> None:
    dropin("here.py", plugin_source("here", attributes="    required_dependencies = ['no-such-library']"))
    (hit,) = search.search("here").plugins
    assert (hit.state, hit.install) == ("incomplete", "apt_model plugin install here")
