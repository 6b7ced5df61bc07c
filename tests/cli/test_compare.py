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


def test_a_page_and_tasks(cli: Callable, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    a, b = new_llama(tmp_path / "甲"), new_llama(tmp_path / "b", seed=1)
    task, page = tmp_path / "choice.jsonl", tmp_path / "out" / "page.html"
    items = [{"context": f"fox {i}", "choices": [" dog", "狗"], "answer": i % 2} for i in range(12)]
    task.write_text("\n".join(json.dumps(i, ensure_ascii=False) for i in items), encoding="utf-8")
    words = ("compare", a, b, "--max-rows", "2", "--window", "32", "--no-speed", "--task", task, "--html", page)
    ran = cli(*words)
    assert ran.code == 0 and "p (Holm)" in ran.out and "choice: accuracy" in page.read_text(encoding="utf-8")
    assert "甲" in page.read_text(encoding="utf-8")
    assert cli(*words).code == 7
    assert cli(*words, "--overwrite").code == 0
    assert cli("compare", a, b, "--task", tmp_path / "none.jsonl").code == 3


def test_predictions_that_are_no_numbers_are_not_called_equal(
    cli: Callable, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    a, b = new_llama(tmp_path / "a"), new_llama(tmp_path / "b")
    tensors = load_file(b / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    words = ("compare", a, b, "--max-rows", "4", "--window", "32", "--no-speed")
    ran = cli(*words)
    assert ran.code == 0 and "not finite" in ran.out and "no difference found" not in ran.out
    assert f"apt_model debug {b}" in ran.out and "nan [" not in ran.out
    assert json.loads(cli(*words, "--json").out)["models"][1]["divergence"]["agreement"]["value"] == 0
    assert cli(*words, "--html", tmp_path / "page.html").code == 0


def test_one_row_has_no_interval(cli: Callable, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    a, b = new_llama(tmp_path / "a"), new_llama(tmp_path / "b", seed=1)
    words = ("compare", a, b, "--max-rows", "1", "--window", "32", "--no-speed")
    perplexity = json.loads(cli(*words, "--json").out)["models"][0]["perplexity"]
    assert perplexity["value"] > 1 and perplexity["low"] is None and perplexity["high"] is None
    page = tmp_path / "page.html"
    assert cli(*words, "--html", page).code == 0
    assert "inf" not in page.read_text(encoding="utf-8").split("<body", 1)[1].replace("info", "")
