"""Recovery: nearer to the dense parent, zeros that stay, and a kill that changes nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kills import killed

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, NotFoundError, TargetExistsError, UnsupportedError
from apt.console.output import to_json
from apt.document import DocumentError
from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning.recovery import training as recovery
from apt.plugins.optional.pruning.recovery.training import Recovery, find_recipe, recover, recovery_config
from apt.training import callbacks
from apt.training.config import parse_config

Maker = Callable[..., Path]


def damaged(parent: Path, target: Path, *, zeros: float = 0.0, dtype: str = "float32") -> Path:
    """A copy with noise on its matrices, and some of their smallest weights at zero."""
    checkpoint = Checkpoint.open(parent)
    model = checkpoint.load()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" not in name:
                continue
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
            order = weight.abs().flatten().argsort()[: round(zeros * weight.numel())]
            weight.view(-1)[order] = 0.0
    model.to(getattr(torch, dtype)).save_pretrained(target)
    checkpoint.tokenizer().save_pretrained(target)
    return target


@pytest.fixture
def pruned(parent: Path, tmp_path: Path) -> Path:
    return damaged(parent, tmp_path / "pruned")


def recipe(folder: Path, *, data: Any = None, **train: Any) -> Path:
    values: dict[str, Any] = {
        "train": {
            "loss": {"name": "distill"}, "optimizer": {"name": "muon", "lr": 0.01, "adamw_lr": 0.003}, "steps": 24,
            "batch_rows": 4, "eval_every": 6, "eval_rows": 4, "precision": "fp32", **train,
        }
    }  # fmt: skip
    if data is not None:
        values["data"] = {"train": data}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


OF_PARENT = {"name": "text", "path": "teacher", "window": 24, "max_rows": 20}


def task(parent: Path, pruned: Path, folder: Path, output: str = "out", **changes: Any) -> Recovery:
    if "recipe" not in changes:
        changes["recipe"] = str(recipe(folder, data=OF_PARENT))
    return Recovery(pruned, str(parent), output=folder / output, work=folder / f".{output}.work", **changes)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def test_the_model_comes_nearer_to_its_parent(parent: Path, pruned: Path, tmp_path: Path) -> None:
    before = (pruned / "model.safetensors").read_bytes()
    result = recover(task(parent, pruned, tmp_path, lineage={"ratio": 0.25}, metrics={"plan": "noise"}))
    assert result.perplexity_parent.value < result.perplexity_after.value < result.perplexity_before.value
    assert (result.steps, result.rows) == (24, 16) and result.tokens == 24 * 4 * 23
    assert result.eval_tokens == 4 * 23 and result.cpu_seconds > 0
    assert result.text == "sampled from the dense parent, split train"
    assert (pruned / "model.safetensors").read_bytes() == before
    assert not (tmp_path / ".out.work").exists()
    written = Checkpoint.open(tmp_path / "out")
    written.tokenizer()
    assert written.lineage is not None and written.lineage["operation"] == "recover"
    assert written.lineage["options"]["teacher"]["digest"] == Checkpoint.open(parent).digest()
    assert written.lineage["options"]["ratio"] == 0.25 and written.lineage["metrics"]["plan"] == "noise"
    assert written.lineage["metrics"]["recovery"]["perplexity_after"]["value"] == result.perplexity_after.value
    assert "seconds" not in to_json(written.lineage["metrics"])
    stored = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text(encoding="utf-8"))
    assert parse_config(stored).resolved() == result.config
    assert all(len(row) == len(table.columns) for table in result.tables() for row in table.rows)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_zeros_stay_zeros(parent: Path, tmp_path: Path, optimizer: str) -> None:
    pruned = damaged(parent, tmp_path / "pruned", zeros=0.5, dtype="bfloat16")
    told = recipe(tmp_path, data=OF_PARENT, optimizer={"name": optimizer, "lr": 0.01})
    result = recover(task(parent, pruned, tmp_path, recipe=str(told)))
    assert result.zero_share_before == result.zero_share_after == 0.5
    first, second = weights_of(pruned), weights_of(tmp_path / "out")
    changed = 0
    for name, weight in first.items():
        if "proj" in name:
            assert bool((second[name][weight == 0] == 0).all()), name
            changed += int((second[name] != weight).sum())
    assert changed and result.perplexity_after.value < result.perplexity_before.value


def test_a_killed_recovery_goes_on_to_the_same_weights(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = damaged(parent, tmp_path / "pruned", zeros=0.5)
    whole = recover(task(parent, pruned, tmp_path, output="whole"))
    real = callbacks.RunCallback.on_step_end

    def dies(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> Any:
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, args, state, control, **rest)

    monkeypatch.setattr(callbacks.RunCallback, "on_step_end", dies)
    killed(lambda: recover(task(parent, pruned, tmp_path)))
    monkeypatch.undo()
    assert (tmp_path / ".out.work" / "run" / "checkpoint-6").is_dir() and not (tmp_path / "out").exists()
    sampled = list((tmp_path / ".out.work").glob("text-*.npz"))
    assert len(sampled) == 1
    monkeypatch.setattr("apt.evaluation.texts.sample_rows", pytest.fail)  # what was sampled is not sampled again
    resumed = recover(task(parent, pruned, tmp_path))
    assert resumed.curve == whole.curve and resumed.tokens == whole.tokens
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "whole"))
    assert first == second


def test_a_kill_before_the_output_appears_leaves_all_that_is_needed(
    parent: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recover(task(parent, pruned, tmp_path, output="whole"))
    monkeypatch.setattr(recovery, "write_trained", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    killed(lambda: recover(task(parent, pruned, tmp_path)))
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert recover(task(parent, pruned, tmp_path)).curve == whole.curve
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "whole"))
    assert first == second


def test_the_text_is_the_recipes_or_the_callers_or_that_of_the_pruning(tmp_path: Path) -> None:
    named, silent = str(recipe(tmp_path, data=OF_PARENT)), tmp_path / "other"
    silent.mkdir()
    unnamed = str(recipe(silent))

    def text(ref: str, **given: Any) -> Any:
        config = recovery_config(ref, **given)
        assert config.data is not None
        return config.data.train

    assert text(named, calibration="embedded").path == "teacher"
    assert text(named, text="embedded").path == "embedded"
    assert (text(unnamed).path, text(unnamed).split, text(unnamed).max_rows) == ("teacher", "train", 100)
    assert text(unnamed, calibration="embedded").path == "embedded"
    rows = rows_from_ids(torch.randint(2, 280, (8, 16)), source="test")
    save_rows({"calibration": rows}, tmp_path / "one.npz")
    save_rows({"calibration": rows, "train": rows}, tmp_path / "two.npz")
    assert text(unnamed, calibration=str(tmp_path / "one.npz")).split == "calibration"
    assert text(unnamed, calibration=str(tmp_path / "two.npz")).split == "train"


def test_the_calibration_rows_are_trained_on_where_nothing_else_is_named(
    parent: Path, pruned: Path, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = rows_from_ids(torch.randint(2, 280, (24, 16), generator=generator), source="test")
    save_rows({"calibration": rows}, tmp_path / "rows.npz")
    given = {"recipe": str(recipe(tmp_path)), "calibration": str(tmp_path / "rows.npz")}
    result = recover(task(parent, pruned, tmp_path, **given))
    assert result.rows == 20 and result.text == f"{tmp_path / 'rows.npz'} (calibration)"
    bad = rows_from_ids(torch.full((8, 16), 999), source="test")
    save_rows({"calibration": bad}, tmp_path / "rows.npz", overwrite=True)
    with pytest.raises(BadInputError, match="token ids"):
        recover(task(parent, pruned, tmp_path, output="other", **given))


def test_refusals_come_before_the_run(parent: Path, pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no recipe 'kdd'"):
        recover(task(parent, pruned, tmp_path, recipe="kdd"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("train:\n  stepz: 3\n", encoding="utf-8")
    with pytest.raises(DocumentError, match="stepz"):
        recover(task(parent, pruned, tmp_path, recipe=str(bad)))
    (tmp_path / "there").mkdir()
    with pytest.raises(TargetExistsError):
        recover(task(parent, pruned, tmp_path, output="there"))
    masked = damaged(parent, tmp_path / "masked", zeros=0.5)
    lora = str(recipe(tmp_path, data=OF_PARENT, tuning={"name": "lora"}))
    with pytest.raises(UnsupportedError, match="zeros are held"):
        recover(task(parent, masked, tmp_path, recipe=lora))
    assert not (tmp_path / "out").exists()


def test_a_window_beyond_the_context_is_lowered(
    parent: Path, pruned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context = int(Checkpoint.open(parent).config["max_position_embeddings"])
    given = {"recipe": str(recipe(tmp_path, data={**OF_PARENT, "window": 4 * context}, steps=2, eval_every=2))}
    recover(task(parent, pruned, tmp_path, **given))
    assert f"data.train.window: {4 * context} tokens lowered to {context}" in capfd.readouterr().err
    kept = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text(encoding="utf-8"))
    assert kept["data"]["train"]["window"] == context


def test_kd_is_short_for_a_shipped_recipe() -> None:
    assert find_recipe("kd") == find_recipe("recover/kd") and find_recipe("kd").is_file()
    config = recovery_config("kd", calibration="embedded")
    assert config.data is not None and config.data.train.path == "teacher"  # type: ignore[attr-defined]
    assert config.train.loss.name == "distill"
