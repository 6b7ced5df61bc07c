"""What is known of plugins without importing them is what they register."""

import pytest

from apt.plugins import declare, discovery
from apt.plugins.discovery import Found, Watch

BUILT_IN = [found for found in discovery.find(Watch()) if not found.foreign]


@pytest.mark.parametrize("found", BUILT_IN, ids=lambda f: f.folder)
def test_static_facts_of_built_in_plugins_are_what_they_register(found: Found) -> None:
    told = declare.describe(declare.load_class(found.target))
    known = {"api": 1, "author": "", "requires": [], "conflicts": [], "optional_dependencies": [], **found.facts}
    for command in known["commands"]:
        command["help"] = command["help"] or known["description"]
    assert known == told
