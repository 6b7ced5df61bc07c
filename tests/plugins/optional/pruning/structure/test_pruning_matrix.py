"""A sample of ``benchmarks/pruning_matrix.py``: every family once, every axis, reloaded by a new stock process."""

import importlib.util
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

SAMPLE = {
    "llama-mha": ("heads", 0.25), "llama-gqa": ("heads", 0.50), "llama-mqa": ("heads", 0.10),
    "llama-tied": ("hidden", 0.25), "mistral": ("ff", 0.25), "qwen2": ("hidden", 0.50), "qwen3": ("depth", 0.25),
    "gemma2": ("hidden", 0.10), "gemma3": ("depth", 0.10), "phi3": ("heads", 0.25), "gpt2": ("hidden", 0.25),
}  # fmt: skip


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch):
    path = Path(__file__).parents[5] / "benchmarks" / "pruning_matrix.py"
    spec = importlib.util.spec_from_file_location("pruning_matrix", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pruning_matrix", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def test_each_family_loses_what_was_asked_and_reloads(matrix, tmp_path: Path):
    assert set(SAMPLE) == set(matrix.FAMILIES)
    cells = []
    for name, (axis, share) in SAMPLE.items():
        cells += matrix.cut_cells(name, axis, [share], tmp_path)
    (refused,) = matrix.cut_cells("gpt2", "heads", [0.5], tmp_path)
    (damaged,) = matrix.cut_cells("mistral", "ff", [0.5], tmp_path)
    path = tmp_path / damaged.name / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    matrix.reload([*cells, refused, damaged], tmp_path)
    for cell in cells:
        assert not cell.refused and cell.good, cell
    assert "no head size in its config" in refused.refused and "the nearest" in refused.refused
    assert refused.good
    assert not damaged.good and damaged.apart > matrix.LOGITS_WITHIN
