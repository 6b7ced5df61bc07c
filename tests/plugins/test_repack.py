"""An installed distribution becomes a wheel again: the same bytes each time, and only from files that are untouched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import BadInputError, UnsupportedError
from apt.plugins import distributions, repack, wheels

Make = Callable[..., Any]


def installed(name: str) -> Any:
    dist = distributions.find(name)
    assert dist is not None
    return dist


def test_the_same_files_make_the_same_bytes(make_wheel: Make, put: Make, tmp_path: Path) -> None:
    wheel = make_wheel("greet", files={"greet/给,数据.txt": "数据", "greet/tool.so": b"\x7fELF"})
    site = put(wheel)
    (site / "greet-1.0.dist-info" / "INSTALLER").write_text("pip\n")
    (site / "greet" / "__pycache__").mkdir()
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(repack.repack(installed("greet"), tmp_path / name))
        (site / "greet" / "__init__.py").touch()
    assert made[0].read_bytes() == made[1].read_bytes()
    assert made[0].name == wheel.name
    before, after = wheels.recorded(wheel), wheels.recorded(made[0])
    record = "greet-1.0.dist-info/RECORD"
    assert before | {record: ""} == after | {record: ""}
    for path in made[0], wheel:
        assert wheels.look(path).plugins[0].facts["name"] == "greet"


def test_changed_missing_and_editable_files_are_refused(make_wheel: Make, put: Make, tmp_path: Path) -> None:
    site = put(make_wheel("greet"))
    (site / "greet" / "__init__.py").write_text("changed")
    with pytest.raises(BadInputError, match=r"1 of its files are not those .*greet/__init__\.py"):
        repack.repack(installed("greet"), tmp_path)
    (site / "greet" / "__init__.py").unlink()
    with pytest.raises(BadInputError, match="not those that were installed"):
        repack.repack(installed("greet"), tmp_path)
    noted = {"url": "file:///x", "dir_info": {"editable": True}}
    (site / "greet-1.0.dist-info" / "direct_url.json").write_text(json.dumps(noted))
    with pytest.raises(UnsupportedError, match="editable installation"):
        repack.repack(installed("greet"), tmp_path)


def test_files_outside_the_environment_are_not_taken(make_wheel: Make, put: Make, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    site = put(make_wheel("greedy"))
    record = site / "greedy-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "../secret,,\n")
    with pytest.raises(UnsupportedError, match="outside its environment"):
        repack.repack(installed("greedy"), tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def test_scripts_and_data_of_a_real_installation(environment: Make, make_wheel: Make, tmp_path: Path) -> None:
    wheel = make_wheel("tooled", files={
        "tooled-1.0.data/scripts/tool-script": "#!python\nprint('script')\n",
        "tooled-1.0.data/data/share/tooled/data.txt": "data",
        "tooled-1.0.dist-info/entry_points.txt":
            "[apt_model.plugins]\ntooled = tooled:Made\n[console_scripts]\ntooled-run = tooled:Made\n",
    })  # fmt: skip
    here, there = environment("here"), environment("there")
    here.json("plugin", "install", wheel)
    here.json("plugin", "lock", "-o", tmp_path / "lock.json")
    there.json("plugin", "sync", tmp_path / "lock.json")
    for made in (here, there):
        script = (made.directory / "bin" / "tool-script").read_text()
        assert script == f"#!{made.python}\nprint('script')\n"
        assert (made.directory / "share" / "tooled" / "data.txt").read_text() == "data"
        assert (made.directory / "bin" / "tooled-run").is_file()
