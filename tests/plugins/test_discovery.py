"""What is known of plugins without importing them is what they register."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.plugins import declare, discovery, host, trying
from apt.plugins.discovery import Found, Watch

Make = Callable[..., Any]
SOURCE = "from apt.plugins.base import Plugin\nclass Made(Plugin):\n    name = {!r}\n"
source_of = SOURCE.format
BUILT_IN = [found for found in discovery.find(Watch()) if not found.foreign]


@pytest.mark.parametrize("found", BUILT_IN, ids=lambda f: f.folder)
def test_static_facts_of_built_in_plugins_are_what_they_register(found: Found) -> None:
    told = declare.describe(declare.load_class(found.target))
    known = {"api": 1, "author": "", "requires": [], "conflicts": [], "optional_dependencies": [], **found.facts}
    for command in known["commands"]:
        command["help"] = command["help"] or known["description"]
    assert known == told


def test_package_around_a_plugins_module_is_its_root_and_holds_its_manifest(make_wheel: Make, put: Make) -> None:
    files = {
        "two/inner/a.py": source_of("a"),
        "two/inner/b.py": source_of("b"),
        "two/plugin.toml": '[[plugin]]\nname = "a"\nauthor = "outer"\n',
        "two-1.0.dist-info/entry_points.txt": "[apt_model.plugins]\na = two.inner.a:Made\nb = two.inner.b:Made\n",
    }
    site = put(make_wheel("two", files=files | {"two/inner/__init__.py": ""}, plugin=None))
    found = {f.folder: f for f in discovery.find(Watch()) if f.source == "entry point"}
    assert {f.root for f in found.values()} == {site / "two"}
    assert (found["a"].facts["author"], found["b"].facts["author"]) == ("outer", "somebody")
    (site / "two" / "inner" / "plugin.toml").write_text('[plugin]\nauthor = "inner"\n')
    found = {f.folder: f for f in discovery.find(Watch()) if f.source == "entry point"}
    assert (found["a"].facts["author"], found["b"].facts["author"]) == ("inner", "inner")


def test_two_plugins_of_one_package_are_tried_each_and_again_when_a_sibling_changes(
    make_wheel: Make, put: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    points = "[apt_model.plugins]\na = two.a:Made\nb = two.b:Made\n"
    files = {"two/a.py": "from . import c\n" + source_of("a"), "two/b.py": source_of("b"), "two/c.py": ""}
    site = put(make_wheel("two", files=files | {"two-1.0.dist-info/entry_points.txt": points}, plugin=None))
    for name in "ab":
        assert trying.attempt([name]).passed
    assert {p.name: p.status for p in host.load().plugins if p.foreign} == {"a": "ready", "b": "ready"}
    (site / "two" / "c.py").write_text("1 / 0")
    assert {p.name: p.status for p in host.load().plugins if p.foreign} == {"a": "untried", "b": "untried"}
    assert not trying.attempt(["a"]).passed
    assert trying.attempt(["b"]).passed


@pytest.mark.parametrize(
    ("files", "module", "root"),
    [
        (("m.py",), "m", "m.py"),
        (("p/__init__.py",), "p", "p"),
        (("p/__init__.py", "p/q/__init__.py", "p/q/m.py"), "p.q.m", "p"),
        (("n/p/__init__.py", "n/p/m.py"), "n.p.m", "n/p"),
        (("n/m.py",), "n.m", "n"),
        (("p/__init__.py", "p/n/m.py"), "p.n.m", "p"),
    ],
)
def test_root_is_the_outermost_package(files: tuple[str, ...], module: str, root: str, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")  # of a directory on the search path it says nothing
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    file = discovery.source_of(module, [str(tmp_path)])
    assert file is not None
    assert discovery._root_of(file, module) == tmp_path / root


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
