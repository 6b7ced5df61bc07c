"""Packages are refused before they are installed when they bring no plugin, or one that could not be used here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import AptError, BadInputError
from apt.plugins import candidates, host

Make = Callable[..., Any]


def look(wheel: Path | str, tmp_path: Path, others: tuple = ()) -> candidates.Package:
    return candidates.look(str(wheel), tmp_path, host.load(), others)


def test_wheel_that_brings_a_plugin_is_taken(make_wheel: Make, tmp_path: Path) -> None:
    wheel = make_wheel("greet")
    package = look(wheel, tmp_path)
    assert (package.name, package.version, package.asked) == ("greet", "1.0", str(wheel))
    (candidate,) = package.candidates
    assert (candidate.record.name, candidate.record.commands) == ("greet", ("greet-command",))


@pytest.mark.parametrize(
    "word", ["torch", "transformers>=9", "numpy[extra]==1", "apt_model==0", "NumPy ; python_version>'3'"]
)
def test_held_packages_are_refused_without_asking_pip(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apt.plugins.packages.wheel", None)
    with pytest.raises(BadInputError, match="brings no plugin"):
        look(word, tmp_path)


@pytest.mark.parametrize("word", ["", "--index-url=http://x", "-e."])
def test_options_of_pip_are_no_packages(word: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="neither a plugin nor a package"):
        look(word, tmp_path)


def test_package_without_plugin_is_refused(make_wheel: Make, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"brings no plugin: made-helper 1\.0 has no entry point"):
        look(make_wheel("made-helper", plugin=None), tmp_path)
    with pytest.raises(BadInputError, match="which no plugin may replace"):
        look(make_wheel("torch", "9.0", plugin="greet"), tmp_path)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("    api = 99", "needs plugin interface 99; this apt_model has 1"),
        ("    name = 'ollama-export'", "its name belongs to the built-in plugin"),
        ("    name = 'here'", "its name belongs to the drop-in plugin"),
        ("    name = 'a b'", "bad plugin name 'a b'"),
    ],
)
def test_plugin_that_could_not_be_used_is_refused(
    attributes: str, reason: str, make_wheel: Make, dropin: Make, plugin_source: Make, tmp_path: Path
) -> None:
    dropin("here.py", plugin_source("here"))
    wheel = make_wheel("new", source=plugin_source("new", attributes=attributes))
    with pytest.raises(BadInputError) as refused:
        look(wheel, tmp_path)
    assert reason in str(refused.value)


@pytest.mark.parametrize("command", ["info", "plugin", "prune", "here-command"])
def test_command_that_is_taken_is_refused(
    command: str, make_wheel: Make, dropin: Make, plugin_source: Make, tmp_path: Path
) -> None:
    dropin("here.py", plugin_source("here"))
    with pytest.raises(BadInputError, match=f"its command '{command}' belongs to"):
        look(make_wheel("new", source=plugin_source("new", command=command)), tmp_path)


def test_component_that_is_taken_is_refused(make_wheel: Make, plugin_source: Make, tmp_path: Path) -> None:
    body = "    def register_components(self, r): r.add_component('optimizer', 'adamw', 'new:x')"
    with pytest.raises(BadInputError, match="its optimizer 'adamw' belongs to apt_model itself"):
        look(make_wheel("new", source=plugin_source("new", body=body)), tmp_path)


def test_reinstalling_a_package_takes_its_own_names(make_wheel: Make, put: Make, tmp_path: Path) -> None:
    put(make_wheel("greet"))
    newer = look(make_wheel("greet", "2.0"), tmp_path)
    assert newer.version == "2.0"
    with pytest.raises(BadInputError, match="another of the packages brings a plugin of that name"):
        candidates.look(str(make_wheel("greet", "3.0")), tmp_path, host.load(), newer.candidates)


def test_a_directory_of_the_current_one_is_meant_and_not_a_package_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("apt.plugins.packages.wheel", lambda word, _: asked.append(word) or tmp_path / "none.whl")
    (tmp_path / "greet").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AptError):
        look("greet", tmp_path)
    assert asked == [str(tmp_path / "greet")]


@pytest.mark.parametrize("word", ["boto3", "gguf>=0.17", "modelscope"])
def test_requirements_of_plugins_are_told_from_strangers(word: str) -> None:
    data = host.load()
    wanted = {candidates.named(r) for p in data.plugins for r in (*p.required_dependencies, *p.optional_dependencies)}
    assert candidates.is_requirement_of_a_plugin(word, data) == (candidates.named(word) in wanted)
    assert not candidates.is_requirement_of_a_plugin("torch", data)
    assert candidates.is_requirement_of_a_plugin("gguf", data)


@pytest.mark.parametrize("mine", [True, False])
def test_conflicts_are_found_whoever_says_so(
    mine: bool, make_wheel: Make, dropin: Make, plugin_source: Make, tmp_path: Path
) -> None:
    says = "    conflicts = ['{}']".format
    dropin("here.py", plugin_source("here", attributes="" if mine else says("new")))
    wheel = make_wheel("new", source=plugin_source("new", attributes=says("here") if mine else ""))
    package = look(wheel, tmp_path)
    with pytest.raises(BadInputError, match="the plugin new conflicts with the plugin here") as refused:
        candidates.check_conflicts(package.candidates, host.load())
    assert refused.value.hint == "apt_model plugin disable here"
