"""Comparisons with tasks, tests and GGUF files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apt.console.errors import UsageError
from apt.evaluation import operations as ops
from apt.evaluation.comparing import _different
from apt.plugins import host
from apt.plugins.builtin.ollama.export import export_gguf
from apt.plugins.builtin.ollama.options import ExportOptions
from apt.registry import Registry
from apt.store import embedded_path

LINES = [f"Line {i}: the quick brown fox jumps over the lazy dog {i * 7} times. 你好，世界。" for i in range(40)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "choice.jsonl"
    items = [{"context": line, "choices": [" fox", " dog", "世界"], "answer": i % 3} for i, line in enumerate(LINES)]
    path.write_text("\n".join(json.dumps(i) for i in items), encoding="utf-8")
    return path


def compare(models: list[Path], registry: Registry | None = None, **options: object) -> ops.CompareResult:
    settings: dict[str, object] = {"models": [str(m) for m in models], "window": 24, "speed": False}
    return ops.compare(ops.CompareOptions.model_validate(settings | options), registry)


def test_damage_is_beyond_chance_and_a_copy_is_not(
    new_llama: Callable[..., Path], tmp_path: Path, text: Path, task: Path
) -> None:
    first, copy, damaged = (new_llama(tmp_path / n) for n in ("first", "copy", "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    torch.manual_seed(3)
    tensors = {k: v + 0.6 * v.std() * torch.randn(v.shape) if v.ndim > 1 else v for k, v in tensors.items()}
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    found = compare([first, copy, damaged], text=str(text), tasks=(task,))
    by_name = {(t.model, t.figure): t for t in found.tests}
    assert len(by_name) == 6 and by_name["copy", "perplexity"].test.p == 1.0
    assert all(t.verdict == "no difference found" for t in found.tests if t.model == "copy")
    lost = by_name["damaged", "perplexity"]
    assert lost.test.units == len(LINES)  # documents, not rows
    assert lost.verdict in ("worse", "better") and lost.test.p_adjusted >= lost.test.p
    assert (lost.test.difference.value > 0) == (lost.verdict == "worse")
    assert [t.test.test for t in found.tests if t.figure == "choice: accuracy"] == ["mcnemar-midp"] * 2
    assert len(found.tables()) == 4


def test_small_damage_to_a_trained_model_is_found_and_a_copy_of_it_is_the_same(tmp_path: Path) -> None:
    copy, damaged = tmp_path / "copy", tmp_path / "damaged"
    for path in (copy, damaged):
        shutil.copytree(embedded_path(), path)
        (path / "apt.json").unlink(missing_ok=True)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(damaged / "model.safetensors")
    torch.manual_seed(0)
    tensors[name] = tensors[name] + 1.0 * tensors[name].float().std() * torch.randn(tensors[name].shape)
    tensors[name] = tensors[name].to(load_file(copy / "model.safetensors")[name].dtype)
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    found = compare([embedded_path(), copy, damaged], window=128, max_rows=24)
    same, worse = found.models[1:]
    assert same.divergence is not None and same.divergence.kl.value == 0 and same.divergence.agreement.value == 1
    assert [t.verdict for t in found.tests] == ["no difference found", "worse"]
    assert worse.perplexity_ratio is not None and 1.0001 < worse.perplexity_ratio.value < 1.1


def test_another_tokenizer_is_tested_by_documents(new_llama: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    a, b = new_llama(tmp_path / "a"), new_llama(tmp_path / "b", vocab_size=270)
    found = compare([a, b], text=str(text))
    assert [t.figure for t in found.tests] == ["bits per byte"] and found.tests[0].test.units == len(LINES)
    assert "another tokenizer" in found.models[1].notes[0] and found.models[1].divergence is None


@pytest.mark.parametrize("runtime", ["llama.cpp", "transformers"])
def test_a_gguf_compares_with_its_checkpoint(
    new_llama: Callable[..., Path], tmp_path: Path, text: Path, task: Path, runtime: str
) -> None:
    if runtime == "llama.cpp":
        pytest.importorskip("xllamacpp")
    model = new_llama(tmp_path / "m", hidden_size=64, intermediate_size=128)
    gguf = export_gguf(ExportOptions(model=str(model), output=tmp_path / "gguf", type="f32")).path
    registry = host.registry() if runtime == "llama.cpp" else None
    found = compare([model, gguf], registry, text=str(text), tasks=(task,), speed=runtime == "llama.cpp")
    other = found.models[1]
    assert other.runtime.startswith(runtime) and other.divergence is not None
    assert other.divergence.kl.value < 1e-6 and other.divergence.agreement.value > 0.99
    assert other.perplexity_ratio is not None and other.perplexity_ratio.value == pytest.approx(1, abs=1e-4)
    assert other.tasks[0].metrics[0].values == found.models[0].tasks[0].metrics[0].values
    assert (other.speed is not None) == (runtime == "llama.cpp")
    assert any("dequantized" in note for note in other.notes) == (runtime == "transformers")
    if runtime == "llama.cpp":
        with pytest.raises(UsageError, match="sampled from checkpoints"):
            compare([gguf, model], registry, text="self")


def test_models_of_one_name_are_told_apart() -> None:
    assert _different(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
