"""The figures of a result equal independent measurements of what was written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from apt.console.errors import CheckFailedError, UnsupportedError, UsageError
from apt.console.output import to_jsonable
from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning import cutting
from apt.plugins.optional.pruning.operation import preview, prune
from apt.plugins.optional.pruning.options import PruneOptions


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("text") / "rows.npz"
    splits = {"calibration": (16, 64), "heldout": (8, 64)}
    save_rows({k: rows_from_ids(torch.randint(2, 280, v), source="test") for k, v in splits.items()}, path)
    return path


@pytest.fixture(scope="module")
def model(new_llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_llama(tmp_path_factory.mktemp("model") / "m", dtype="bfloat16", initializer_range=0.2)


def options(model: Path, tmp_path: Path, text: Path, **changes) -> PruneOptions:
    given = {"model": str(model), "output": tmp_path / "out", "calibration": str(text), "tokens": 1024}
    return PruneOptions(**{**given, "speed": False, **changes})


@pytest.mark.parametrize(("strategy", "ratio"), [("structured", 0.25), ("magnitude", 0.5)])
def test_the_figures_are_those_of_the_files(model: Path, tmp_path: Path, text: Path, strategy: str, ratio: float):
    result = prune(options(model, tmp_path, text, strategy=strategy, ratio=ratio))
    out = tmp_path / "out"
    dense, pruned = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (model, out))
    for path, parameters, nonzero, size, loaded in (
        (model, result.parameters_before, result.nonzero_before, result.size_bytes_before, dense),
        (out, result.parameters_after, result.nonzero_after, result.size_bytes_after, pruned),
    ):
        assert size == (path / "model.safetensors").stat().st_size
        assert parameters == sum(p.numel() for p in loaded.parameters())
        assert nonzero == sum(int((p != 0).sum()) for p in loaded.parameters())
    heldout = torch.from_numpy(np.load(text)["heldout"]).long()
    for value, loaded in ((result.heldout.perplexity_before, dense), (result.heldout.perplexity_after, pruned)):
        with torch.no_grad():
            logits = loaded(heldout).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, heldout[:, 1:].flatten())
        assert value.value == pytest.approx(float(loss.exp()), rel=1e-4)
    assert result.max_logit_difference == 0.0
    assert result.smaller == (strategy == "structured")
    told = json.loads((out / "apt.json").read_text(encoding="utf-8"))["metrics"]
    assert told["heldout"] == to_jsonable(result.heldout)
    assert told["nonzero_after"] == result.nonzero_after
    assert result.cpu_seconds > 0 and result.peak_rss_bytes > 10**8


def test_a_mask_says_what_it_does_not_save(model: Path, tmp_path: Path, text: Path):
    result = prune(options(model, tmp_path, text, strategy="magnitude", ratio=0.5, speed=True))
    assert result.size_bytes_after == result.size_bytes_before
    assert result.speed is not None and result.speed.first.dtype == "bfloat16"
    title = result.tables()[0].title
    assert "zeros only: same size, same speed, measured" in title and "× the decode speed" in title


def test_bytes_are_counted_in_the_stored_dtype(model: Path, tmp_path: Path, text: Path):
    result = prune(options(model, tmp_path, text, target_bytes="0.8x", effort="light"))
    assert 0.75 * result.size_bytes_before <= result.size_bytes_after <= 0.8 * result.size_bytes_before


def test_a_streamed_cut_is_the_one_that_was_shown(model: Path, tmp_path: Path, text: Path):
    asked = options(model, tmp_path, text, stream=True, effort="light", ratio=0.4)
    told = preview(asked)
    result = prune(asked)
    (plan,) = told.plans
    assert (plan.plan, plan.removed_share, plan.parameters) == (
        result.plan, result.removed_share, result.parameters_after,
    )  # fmt: skip
    assert 0 < result.size_bytes_after - plan.size_bytes < 8192
    assert told.memory_bytes < preview(options(model, tmp_path / "other", text, ratio=0.4)).memory_bytes


def test_what_cannot_be_streamed_is_refused_by_the_preview_too(model: Path, tmp_path: Path, text: Path):
    with pytest.raises(UnsupportedError, match="needs the whole model"):
        preview(options(model, tmp_path, text, stream=True, strategy="taylor", ratio=0.5))
    with pytest.raises(UsageError, match="sampled from a model in memory"):
        preview(options(model, tmp_path, text, stream=True, calibration="self"))


def test_what_single_cuts_cost_is_told_of_a_search(model: Path, tmp_path: Path, text: Path, capfd):
    result = prune(options(model, tmp_path, text, ratio=0.3))
    assert "plans are measured on the rows that they are fitted on" in capfd.readouterr().err  # a text of one batch
    layers = len(result.layers)
    assert {(cost.layer, cost.axis) for cost in result.sensitivity if cost.axis != "drop"} == {
        (layer, axis) for layer in range(layers) for axis in ("attention", "mlp")
    }
    (table,) = (table for table in result.tables() if table.title.startswith("What cutting one layer alone costs"))
    assert [row[0] for row in table.rows] == [str(layer) for layer in range(layers)]
    half = [c for c in result.sensitivity if (c.layer, c.axis, c.kept_share) == (0, "mlp", 0.5)]
    assert table.rows[0][3] == f"{half[0].loss_rise:+.4f}"


def test_a_light_cut_is_the_one_that_was_shown(model: Path, tmp_path: Path, text: Path):
    asked = options(model, tmp_path, text, effort="light", ratio=0.4)
    (plan,) = preview(asked).plans
    result = prune(asked)
    assert (plan.plan, plan.parameters) == (result.plan, result.parameters_after)


def test_what_was_written_wrongly_does_not_appear(model: Path, tmp_path: Path, text: Path, monkeypatch):
    def spoilt(writer, cut, parent):
        with torch.no_grad():
            cut.model.norm.weight.mul_(1.5)
        cut.save_pretrained(writer.directory)

    monkeypatch.setattr(cutting.CheckpointWriter, "write_model", spoilt)
    with pytest.raises(CheckFailedError, match="computes other logits"):
        prune(options(model, tmp_path, text))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
