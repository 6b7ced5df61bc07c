"""``size``: the groups add up."""

import json
from collections.abc import Callable
from pathlib import Path


def test_groups_add_up(cli: Callable, llama_dir: Path) -> None:
    ran = cli("size", llama_dir, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0
    assert sum(g["size_bytes"] for g in found["groups"]) == found["tensor_bytes"]
    assert sum(found["bytes_by_component"].values()) == sum(found["bytes_by_dtype"].values()) == found["tensor_bytes"]
    assert "100.0 %" in cli("size", llama_dir).out
