"""``test``: exit codes, and a result even when it fails."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def test_a_sound_model_passes(cli: Callable, llama_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 20, encoding="utf-8")
    ran = cli("test", llama_dir, "--text", text, "--new-tokens", "4", "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found["passed"] and found["score"]["perplexity"]["low"] <= found["score"]["perplexity"]["high"]
    ran = cli("test", llama_dir, "--text", "none", "--new-tokens", "4")
    assert ran.code == 0 and "passed" in ran.out and "perplexity" not in ran.out
    assert cli("test", llama_dir, "--text", tmp_path / "none.txt").code == 3
    assert cli("test", llama_dir, "--max-rows", "0").code == 2


def test_a_fault_is_told_with_exit_code_10(cli: Callable, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][2] = float("inf")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    ran = cli("test", path, "--json")
    assert ran.code == 10
    found = json.loads(ran.out)
    assert not found["passed"] and [c["name"] for c in found["checks"] if not c["passed"]] == ["finite weights"]
    assert "finite weights" in ran.err
