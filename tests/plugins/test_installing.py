"""Installing: what plugins miss, packages that bring plugins, what those require; trials afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import AptError, NotFoundError
from apt.plugins import installing, packages

Make = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What pip would be given; pip itself is not run."""
    calls: list[tuple[str, ...]] = []

    def install(
        requirements: list[str], *, pins: list[str] = (), replace: bool = False, dry_run: bool = False
    ) -> tuple[str, ...]:
        calls.append((*requirements, *pins))
        return ()

    monkeypatch.setattr(packages, "install", install)
    return calls


def index(tmp_path: Path, *entries: dict[str, Any]) -> str:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"plugins": list(entries)}))
    return str(path)


def requiring(plugin_source: Make, name: str, *wanted: str, missing: str = "") -> str:
    attributes = f"    requires = {list(wanted)}\n    required_dependencies = {[missing] if missing else []}"
    return plugin_source(name, attributes=attributes)


def test_nothing_to_install_needs_no_pip(dropin: Make, plugin_source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dropin("here.py", plugin_source("here"))
    monkeypatch.setattr(packages, "pip", None)
    result = installing.install(["here", "model-pruning"], dry_run=True)
    assert (result.installed, result.requirements) == ((), ())
    assert "nothing: everything required is installed" in str(result.tables())


def test_required_plugin_that_is_incomplete_is_completed(
    dropin: Make, plugin_source: Make, asked: list, make_wheel: Make
) -> None:
    dropin("base.py", requiring(plugin_source, "base", missing="no-such-library"))
    wheel = make_wheel("top", source=requiring(plugin_source, "top", "base"))
    result = installing.install([str(wheel)], dry_run=True)
    assert asked == [(str(wheel), "no-such-library", "top==1.0")]
    assert (result.plugins, [c.name for c in result.coming]) == (("base",), ["top"])


def test_required_plugins_come_from_the_other_words_or_the_index(
    plugin_source: Make, asked: list, make_wheel: Make, tmp_path: Path
) -> None:
    base = make_wheel("base")
    top = make_wheel("top", source=requiring(plugin_source, "top", "base"))
    known = index(tmp_path, {"name": "base", "description": "", "requirement": f"base @ {base.as_uri()}"})
    for words, options in (([str(top), str(base)], {}), ([str(top)], {"index": known})):
        assert [c.name for c in installing.install(words, dry_run=True, **options).coming] == ["top", "base"]
    with pytest.raises(NotFoundError, match="the plugin top requires the plugin base, which is not installed"):
        installing.install([str(top)], dry_run=True)


def test_index_that_names_another_package_is_told(asked: list, make_wheel: Make, tmp_path: Path) -> None:
    other = make_wheel("other")
    known = index(tmp_path, {"name": "base", "description": "", "requirement": f"other @ {other.as_uri()}"})
    with pytest.raises(AptError, match="does not bring the plugin base, whatever the index says"):
        installing.install(["base"], dry_run=True, index=known)
    assert asked == []


def test_other_files_of_the_same_version_are_put_in_place(
    put: Make, asked: list, make_wheel: Make, plugin_source: Make
) -> None:
    wheel = make_wheel("greet")
    put(wheel)
    installing.install([str(wheel)], dry_run=True)
    wheel = make_wheel("greet", source=plugin_source("greet", top="# edited"))
    installing.install([str(wheel)], dry_run=True)
    assert asked == [(str(wheel), "greet==1.0")] * 3


def test_second_run_of_pip_that_fails_tells_what_the_first_did(
    put: Make, make_wheel: Make, plugin_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(make_wheel("greet"))

    def install(_requirements: list[str], *, replace: bool = False, **_: Any) -> tuple[str, ...]:
        if replace:
            raise AptError("pip could not install greet: disk")
        return ("new==2.0",)

    monkeypatch.setattr(packages, "install", install)
    with pytest.raises(AptError, match=r"disk; installed before that: new==2\.0"):
        installing.install([str(make_wheel("greet", source=plugin_source("greet", top="# edited")))])


def test_required_plugin_that_is_disabled_or_broken_is_told(
    dropin: Make, plugin_source: Make, asked: list, make_wheel: Make
) -> None:
    dropin("base.py", plugin_source("base", attributes="    api = 9"))
    wheel = make_wheel("top", source=requiring(plugin_source, "top", "base"))
    with pytest.raises(AptError, match="the plugin top requires base, which is not usable: needs plugin interface 9"):
        installing.install([str(wheel)], dry_run=True)
    assert asked == []


def test_optional_requirements_of_a_new_plugin(plugin_source: Make, asked: list, make_wheel: Make) -> None:
    wheel = make_wheel("new", source=plugin_source("new", attributes="    optional_dependencies = ['no-such-extra']"))
    installing.install([str(wheel)], dry_run=True)
    installing.install([str(wheel)], dry_run=True, optional=True)
    assert asked == [(str(wheel), "new==1.0"), ("no-such-extra", str(wheel), "new==1.0")]


@pytest.mark.parametrize("name", ["multimodal-training", "distil", "cloud_storag", "base"])
def test_no_name_of_a_plugin_is_given_to_pip(
    name: str, dropin: Make, plugin_source: Make, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "wheel", None)
    dropin("top.py", requiring(plugin_source, "top", "base"))
    with pytest.raises(NotFoundError):
        installing.install([name])


def test_install_for_real_tries_the_new_plugins(environment: Make, make_wheel: Make, plugin_source: Make) -> None:
    here = environment()
    sound = make_wheel("sound")
    raises = make_wheel("raises", source=plugin_source("raises", top="raise ValueError('no')"))
    would = here.json("plugin", "install", sound, "--dry-run")
    assert (would["installed"], [c["name"] for c in would["coming"]], would["trials"]) == (
        ["sound==1.0"],
        ["sound"],
        [],
    )
    assert here.plugins() == {}
    done = here.json("plugin", "install", sound, raises, code=10)
    assert done["installed"] == ["raises==1.0", "sound==1.0"]
    trials = {t["plugin"]: t for t in done["trials"]}
    assert trials["sound"]["verdict"] == "passed" and trials["sound"]["import_seconds"] > 0
    assert (trials["raises"]["verdict"], trials["raises"]["reason"]) == ("failed", "ValueError: no")
    assert "apt_model plugin uninstall raises" in trials["raises"]["mend"]
    assert {n: p["status"] for n, p in here.plugins().items()} == {"sound": "ready", "raises": "quarantined"}
    assert here.run("sound-command").stdout.startswith("hello from sound")


BACKEND = """
import shutil, pathlib
def build_wheel(directory, config_settings=None, metadata_directory=None):
    (wheel,) = pathlib.Path(__file__).parent.glob("*.whl")
    return pathlib.Path(shutil.copy(wheel, directory)).name
"""


def test_directories_and_packages_of_an_index(
    environment: Make, make_wheel: Make, simple_index: Any, tmp_path: Path
) -> None:
    here = environment(index=simple_index.url)
    project = tmp_path / "project"
    project.mkdir()
    make_wheel("from-directory", directory=project)
    (project / "backend.py").write_text(BACKEND)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    helper = make_wheel("made-helper", plugin=None)
    for wheel in (helper, make_wheel("on-index", requires=("made-helper",)), make_wheel("on-index", "2.0")):
        simple_index.wheels[wheel.name] = wheel.read_bytes()
    known = index(tmp_path, {"name": "on-index", "description": "served", "requirement": "on-index<2"})
    done = here.json("plugin", "install", project, "on-index", "--index", known)
    assert done["installed"] == ["from-directory==1.0", "made-helper==1.0", "on-index==1.0"]
    assert set(here.plugins()) == {"from-directory", "on-index"}
    would = here.json("plugin", "uninstall", "from-directory", "on-index", "--dry-run")
    wanted = {"from-directory": project, "on-index": "on-index==1.0"}
    assert {r["plugin"]: r["restore"] for r in would["removed"]} == {
        name: f"apt_model plugin install {what}" for name, what in wanted.items()
    }
    assert here.json("plugin", "doctor", "from-directory")["findings"] == []
    assert "brings no plugin" in here.json("plugin", "install", "made-helper>=1", code=4)["error"]["message"]
    found = here.json("plugin", "search", "SERVED", "--index", known)
    assert [p["state"] for p in found["plugins"]] == []  # once installed, its own description counts
