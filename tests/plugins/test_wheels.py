"""Wheels are looked at without being installed or executed; hostile ones are refused in one line."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apt.console.errors import AptError, BadInputError
from apt.plugins import distributions, wheels

Make = Callable[..., Path]


def test_wheel_tells_its_plugins_and_runs_nothing(make_wheel: Make, plugin_source: Callable[..., str]) -> None:
    source = plugin_source("greet", top="raise SystemExit('imported')")
    toml = '[plugin]\napi = 7\nhooks = ["after_operation"]\n'
    wheel = make_wheel("greet-plugin", plugin="greet", source=source, files={"greet_plugin/plugin.toml": toml})
    found = wheels.look(wheel)
    assert (found.name, found.version) == ("greet-plugin", "1.0")
    (plugin,) = found.plugins
    assert (plugin.facts["name"], plugin.facts["api"], plugin.facts["hooks"]) == ("greet", 7, ["after_operation"])
    assert [c["name"] for c in plugin.facts["commands"]] == ["greet-command"]


def test_modules_under_data_purelib_are_found(make_wheel: Make, plugin_source: Callable[..., str]) -> None:
    wheel = make_wheel("odd", plugin=None, files={
        "odd-1.0.data/purelib/deep/__init__.py": plugin_source("deep"),
        "odd-1.0.dist-info/entry_points.txt": "[apt_model.plugins]\ndeep = deep:Made\n",
    })  # fmt: skip
    (plugin,) = wheels.look(wheel).plugins
    assert plugin.facts["version"] == "1.2"


@pytest.mark.parametrize("name", ["../outside.py", "/etc/outside", "a/../../b", "c:/x.py"])
def test_names_that_leave_the_directory_are_refused(name: str, make_wheel: Make) -> None:
    with pytest.raises(BadInputError, match="outside its directory"):
        wheels.look(make_wheel("evil", files={name: "x"}))


def test_size_is_bounded(make_wheel: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_LARGEST_FILE", 1000)
    with pytest.raises(BadInputError, match=r"too large to be looked at: big/large\.py"):
        wheels.look(make_wheel("big", files={"big/large.py": "#" * 1001}))
    assert wheels.look(make_wheel("data", files={"data/large.bin": "#" * 1001})).plugins  # is not looked at
    monkeypatch.setattr(wheels, "_MOST_FILES", 3)
    with pytest.raises(BadInputError, match="more than 3"):
        wheels.look(make_wheel("many"))


def test_doubled_members_and_wheels_without_metadata_are_refused(make_wheel: Make, tmp_path: Path) -> None:
    wheel = make_wheel("doubled")
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("doubled/__init__.py", "")
    with pytest.raises(BadInputError, match="twice"):
        wheels.look(wheel)
    with zipfile.ZipFile(tmp_path / "none.whl", "w") as archive:
        archive.writestr("none.py", "")
    with pytest.raises(BadInputError, match="is no wheel"):
        wheels.look(tmp_path / "none.whl")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_wheels_are_told_in_one_line(data: st.DataObject, make_wheel: Make, tmp_path: Path) -> None:
    original = make_wheel("damaged").read_bytes()
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.whl"
    path.write_bytes(
        bytes(damaged[: data.draw(st.integers(0, len(original)))] if data.draw(st.booleans()) else damaged)
    )
    for read in (wheels.look, wheels.recorded):
        try:
            read(path)
        except AptError as error:
            assert "\n" not in str(error)


def test_recorded_hashes_are_computed(make_wheel: Make, put: Callable[[Path], Path]) -> None:
    wheel = make_wheel("sound")
    put(wheel)
    dist = distributions.find("sound")
    assert dist is not None
    noted = {name: text.removeprefix("sha256=") for name, text in distributions.recorded(dist) if text}
    assert {n: h for n, h in wheels.recorded(wheel).items() if not n.endswith("RECORD")} == noted


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({f"odd/{'x' * 300}.py": ""}, "names a file as no system can"),
        ({"odd_mod.py": "", "odd_mod.py/x.py": ""}, "holds 'odd_mod.py' as a file and as a directory"),
        ({"odd-1.0.dist-info/METADATA": "Name: victim\nVersion: 1.0\n"}, "has the metadata of victim in odd-1.0"),
        (
            {"odd-1.0.dist-info/METADATA": "Name: odd\nVersion: 1.0\nRequires-Dist: ???\n"},
            r"requires '\?\?\?', which is no requirement",
        ),
    ],
)
def test_wheels_that_cannot_be_installed_are_told(files: dict, told: str, make_wheel: Make) -> None:
    with pytest.raises(BadInputError, match=told):
        wheels.look(make_wheel("odd", files=files))


def test_pipes_and_directories_are_no_wheels(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.whl")
    (tmp_path / "directory.whl").mkdir()
    for name in ("pipe.whl", "directory.whl"):
        with pytest.raises(BadInputError, match="it is not a file"):
            wheels.look(tmp_path / name)
