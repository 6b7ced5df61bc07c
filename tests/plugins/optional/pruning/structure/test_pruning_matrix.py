"""A sample of the architecture matrix: every family once, every axis, reloaded by a new stock process."""

from pathlib import Path

import pytest
from pruning_cells import FAMILIES, LOGITS_WITHIN, REFUSALS, Cell, cut_cells, reload
from safetensors.torch import load_file, save_file

SAMPLE = {
    "llama-mha": ("heads", 0.25), "llama-gqa": ("heads", 0.50), "llama-mqa": ("heads", 0.10),
    "llama-tied": ("hidden", 0.25), "mistral": ("ff", 0.25), "qwen2": ("hidden", 0.50), "qwen3": ("depth", 0.25),
    "gemma2": ("hidden", 0.10), "gemma3": ("depth", 0.10), "phi3": ("heads", 0.25), "gpt2": ("hidden", 0.25),
}  # fmt: skip


def test_each_family_loses_what_was_asked_and_reloads(tmp_path: Path):
    assert set(SAMPLE) == set(FAMILIES)
    cells = [cell for name, (axis, share) in SAMPLE.items() for cell in cut_cells(name, axis, [share], tmp_path)]
    (damaged,) = cut_cells("mistral", "ff", [0.5], tmp_path)
    path = tmp_path / damaged.name / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    reload([*cells, damaged], tmp_path)
    for cell in cells:
        assert not cell.refused and cell.good, cell
    assert not damaged.good and damaged.apart > LOGITS_WITHIN


@pytest.mark.parametrize(("name", "axis"), REFUSALS)
def test_what_has_to_be_refused_is_refused_for_that_reason(name: str, axis: str, tmp_path: Path):
    (cell,) = cut_cells(name, axis, [0.5], tmp_path)
    assert cell.good, cell
    assert not any(tmp_path.iterdir())


def test_no_other_refusal_is_good():
    (name, axis), reason = next(iter(REFUSALS.items()))
    told = f"{reason} (the nearest: some sizes)"
    assert Cell(name, axis, 0.5, refused=told).good
    assert not Cell(name, axis, 0.5, refused=reason).good  # without the nearest sizes
    assert not Cell(name, axis, 0.5, refused="unknown family (the nearest: none)").good
    assert not Cell("llama-gqa", axis, 0.5, refused=told).good
    met = {"removed": 0.5, "apart": 0.0, "alike": True, "clean": True}
    assert Cell("llama-gqa", axis, 0.5, **met).good
    assert not Cell(name, axis, 0.5, **met).good  # what stock models cannot be
