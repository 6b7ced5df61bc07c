"""``list``: nothing is an empty list, not an error."""

import json
from collections.abc import Callable
from pathlib import Path


def test_models_and_directories(cli: Callable, new_llama: Callable[..., Path], apt_home: Path, tmp_path: Path) -> None:
    ran = cli("list", "--json")
    assert ran.code == 0 and [m for m in json.loads(ran.out)["models"] if m["place"] != "shipped"] == []
    new_llama(apt_home / "models" / "mine")
    new_llama(tmp_path / "here" / "other")
    ran = cli("list", tmp_path / "here", "--json")
    names = {m["name"] for m in json.loads(ran.out)["models"]}
    assert {"mine", str(tmp_path / "here" / "other")} <= names
    assert "mine" in cli("list").out
    assert cli("list", tmp_path / "nowhere").code == 3


def test_sort_and_filter(cli: Callable, new_llama: Callable[..., Path], apt_home: Path) -> None:
    new_llama(apt_home / "models" / "mine")
    ran = cli("list", "--sort", "size", "--filter", "place=store", "--json")
    assert [m["name"] for m in json.loads(ran.out)["models"]] == ["mine"]
    assert cli("list", "--sort", "colour").code == 2
