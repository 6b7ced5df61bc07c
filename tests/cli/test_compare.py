"""``compare``: the call, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path


def test_two_models_are_compared(cli: Callable, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    a, b = new_llama(tmp_path / "a"), new_llama(tmp_path / "b", seed=1)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 20, encoding="utf-8")
    ran = cli("compare", a, b, "--text", text, "--window", "32", "--no-speed", "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert [m["name"] for m in found["models"]] == ["a", "b"] and found["models"][1]["divergence"]["kl"]["value"] > 0
    assert "KL to first" in cli("compare", a, b, "--text", text, "--no-speed").out


def test_wrong_calls_are_refused(cli: Callable, llama_dir: Path, tmp_path: Path) -> None:
    assert cli("compare", llama_dir).code == 2
    assert cli("compare", llama_dir, llama_dir, "--dtype", "int4").code == 2
    assert cli("compare", llama_dir, tmp_path / "missing").code == 3
