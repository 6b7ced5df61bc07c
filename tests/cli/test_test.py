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


def test_tasks_and_a_baseline(cli: Callable, llama_dir: Path, tmp_path: Path) -> None:
    task, baseline = tmp_path / "问题.jsonl", tmp_path / "baseline.json"
    items = [{"context": f"fox {i}", "choices": [" dog", "狗"], "answer": i % 2} for i in range(12)]
    task.write_text("\n".join(json.dumps(i, ensure_ascii=False) for i in items), encoding="utf-8")
    words = ("test", llama_dir, "--text", "none", "--new-tokens", "2", "--task", task)
    ran = cli(*words, "--json")
    assert ran.code == 0 and json.loads(ran.out)["tasks"][0]["name"] == "问题"
    baseline.write_text(ran.out, encoding="utf-8")
    ran = cli(*words, "--baseline", baseline)
    assert ran.code == 0 and "item by item" in ran.out and "问题 (multiple choice, 12 items)" in ran.out
    found = json.loads(baseline.read_text(encoding="utf-8"))
    for metric in found["tasks"][0]["metrics"]:
        metric["values"] = [1.0] * 12
    baseline.write_text(json.dumps(found), encoding="utf-8")
    ran = cli(*words, "--baseline", baseline)
    assert ran.code == 10 and "is worse than" in ran.err and "问题: accuracy" in ran.err
    assert cli(*words, "--baseline", tmp_path / "none.json").code == 3
    assert cli("test", llama_dir, "--task", tmp_path / "none.jsonl").code == 3
    task.write_text("{}", encoding="utf-8")
    ran = cli(*words)
    assert ran.code == 4 and "问题.jsonl:1: not an item" in ran.err


def test_checks_of_plugins_count(cli: Callable, llama_dir: Path, apt_home: Path) -> None:
    path = apt_home / "plugins" / "house.py"
    path.parent.mkdir(parents=True)
    path.write_text("""
from apt.plugins.base import Diagnosis, Plugin

class House(Plugin):
    name = "house"
    def model_checks(self, model):
        return [Diagnosis("card", (model / "README.md").is_file(), "no model card", "write one"), "nonsense"]
""")
    ran = cli("test", llama_dir, "--text", "none", "--json")
    found = {c["name"]: c for c in json.loads(ran.out)["checks"]}
    assert ran.code == 10
    assert (found["card"]["passed"], found["card"]["detail"]) == (False, "no model card")


def test_what_the_code_of_a_model_raises_is_a_failed_check_or_one_line(
    cli: Callable, tmp_path: Path, llama_dir: Path
) -> None:
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    model = tmp_path / "gpt2"
    sizes = {"vocab_size": 288, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_dir / name, model)
    ran = cli("test", model, "--window", "200", "--max-rows", "1", "--new-tokens", "2")
    assert ran.code == 4 and "GPT2LMHeadModel fails: IndexError" in ran.err
    ran = cli("test", model, "--text", "none", "--new-tokens", "100")
    assert ran.code == 10 and "runs" in ran.out + ran.err


def test_a_context_in_which_nothing_can_be_counted(
    cli: Callable, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    ran = cli("test", new_llama(tmp_path / "m", max_position_embeddings=1), "--new-tokens", "2")
    assert ran.code == 4 and "--window" in ran.err


def test_integers_that_nobody_scales_are_no_sound_weights(
    cli: Callable, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = new_llama(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    packed = {n: t.to(torch.int8) if t.ndim == 2 else t for n, t in tensors.items()}
    save_file(packed, model / "model.safetensors", metadata={"format": "pt"})
    assert cli("test", model, "--text", "none", "--new-tokens", "2").code == 10
