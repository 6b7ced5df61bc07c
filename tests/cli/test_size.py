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


def test_memory_says_what_fits(cli: Callable, llama_dir: Path) -> None:
    ran = cli("size", llama_dir, "--memory", "100KiB", "--context", 64, "--batch", 2, "--json")
    found = json.loads(ran.out)
    assert {c["fits"] for c in found["memory"]} == {True, False} and found["memory_limit_bytes"] == 100 * 1024
    assert {(c["context_tokens"], c["batch_rows"]) for c in found["memory"]} == {(64, 2)}
    assert "What fits in 100.0 KiB" in cli("size", llama_dir, "--memory", "100KiB").out
    bad = cli("size", llama_dir, "--memory", "much")
    assert bad.code == 2 and "is not a size" in bad.err
