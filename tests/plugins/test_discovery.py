"""What is known of plugins without importing them is what they register."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.plugins import declare, discovery
from apt.plugins.discovery import Found, Watch

Make = Callable[..., Any]
BUILT_IN = [found for found in discovery.find(Watch()) if not found.foreign]


@pytest.mark.parametrize("found", BUILT_IN, ids=lambda f: f.folder)
def test_static_facts_of_built_in_plugins_are_what_they_register(found: Found) -> None:
    told = declare.describe(declare.load_class(found.target))
    known = {"api": 1, "author": "", "requires": [], "conflicts": [], "optional_dependencies": [], **found.facts}
    for command in known["commands"]:
        command["help"] = command["help"] or known["description"]
    assert known == told


@pytest.mark.parametrize("place", ["", "src"])
def test_editable_package_that_is_found_by_a_finder_is_read_in_its_source_tree(
    place: str, make_wheel: Make, put: Make, tmp_path: Path
) -> None:
    site, project = put(make_wheel("greet")), tmp_path / "项目"
    (project / place).mkdir(parents=True)
    (site / "greet").rename(project / place / "greet")
    noted = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (site / "greet-1.0.dist-info" / "direct_url.json").write_text(json.dumps(noted))
    (found,) = [f for f in discovery.find(Watch()) if f.folder == "greet"]
    assert found.root == project / place / "greet"
    assert [c["name"] for c in found.facts["commands"]] == ["greet-command"]
