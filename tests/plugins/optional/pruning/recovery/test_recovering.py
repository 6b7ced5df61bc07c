"""A cut that is recovered: its figures, and what a call that comes back finds."""

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kills import killed

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError
from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning.cutting import cut
from apt.plugins.optional.pruning.operation import preview, prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.recovery import recovering
from apt.plugins.optional.pruning.recovery.recovering import cut_and_recover
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.run import Run


@pytest.fixture
def options(parent: Path, tmp_path: Path) -> PruneOptions:
    ids = torch.randint(2, 280, (40, 32), generator=torch.Generator().manual_seed(1))
    rows = rows_from_ids(ids, source="test")
    save_rows({"calibration": rows.take(range(32)), "heldout": rows.take(range(32, 40))}, tmp_path / "rows.npz")
    recipe = {
        "train": {
            "loss": {"name": "distill"}, "optimizer": {"name": "muon", "lr": 0.01, "adamw_lr": 0.003}, "steps": 12,
            "batch_rows": 4, "eval_every": 6, "eval_rows": 4, "precision": "fp32",
        }
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return PruneOptions(
        model=str(parent), output=tmp_path / "out", calibration=str(tmp_path / "rows.npz"), strategy="magnitude",
        ratio=0.5, speed=False, recover=str(tmp_path / "recipe.yaml"),
    )  # fmt: skip


def test_the_figures_are_of_what_was_recovered(options: PruneOptions, parent: Path, tmp_path: Path):
    result = prune(options)
    assert isinstance(result, PruneResult)
    assert result.heldout_cut is not None and result.recovery is not None
    alone = prune(options.model_copy(update={"recover": None, "output": tmp_path / "cut"}))
    assert isinstance(alone, PruneResult)
    assert result.heldout_cut.perplexity_after.value == alone.heldout.perplexity_after.value
    assert result.heldout.perplexity_before.value == alone.heldout.perplexity_before.value
    assert result.heldout.perplexity_after.value != alone.heldout.perplexity_after.value
    assert result.recovery.steps == 12
    dense, cut, out = (Checkpoint.open(path) for path in (parent, tmp_path / "cut", tmp_path / "out"))
    for name in dense.tensors:
        if "proj" in name:
            assert torch.equal(out.read(name) == 0, cut.read(name) == 0)
    assert result.nonzero_after == sum(int((out.read(n) != 0).sum()) for n in out.tensors)
    assert result.size_bytes_after == out.size_bytes
    assert not (tmp_path / ".out.run").exists()
    assert any("recover" in table.title.lower() for table in result.tables())


def test_a_call_that_was_killed_takes_the_cut_that_is_made(options: PruneOptions, tmp_path: Path, capfd):
    def interrupted() -> None:
        recovering.recover = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        prune(options)

    killed(interrupted)
    assert not options.output.exists() and (tmp_path / ".out.run" / "pruned").is_dir()
    capfd.readouterr()
    prune(options)
    assert "is cut already; going on from there" in capfd.readouterr().err
    prune(options.model_copy(update={"output": tmp_path / "whole"}))
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == other


def test_a_cut_of_another_call_is_made_anew(options: PruneOptions, tmp_path: Path, capfd, monkeypatch):
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recovering, "recover", interrupted)
        prune(options)
    prune(options.model_copy(update={"ratio": 0.25}))
    assert "is of another call and begins anew" in capfd.readouterr().err
    share = [int((Checkpoint.open(options.output).read(n) == 0).sum()) for n in ("model.layers.0.mlp.up_proj.weight",)]
    assert share == [Checkpoint.open(options.output).tensors["model.layers.0.mlp.up_proj.weight"].elements // 4]


def test_a_recipe_that_would_lose_the_zeros_is_refused_before_the_cut(options: PruneOptions, tmp_path: Path):
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["train"]["tuning"] = {"name": "lora"}
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    asked = options.model_copy(update={"recover": str(tmp_path / "lora.yaml")})
    for call in (preview, prune):
        with pytest.raises(UnsupportedError, match="zeros are held"):
            call(asked)
    assert not list(tmp_path.glob(".out*"))


class Stopped(Exception):
    """Stands for whatever ends a call."""


def stop(*_: Any, **__: Any) -> AbstractContextManager[Any]:
    raise Stopped


def cuts(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> int:
    """Go as far as the recovery; return how many cuts were made for it."""
    made: list[Path] = []

    def cutter(run: Run, target: Path, *, speed: bool) -> Any:
        made.append(target)
        return cut(run, target, speed=speed)

    monkeypatch.setattr(recovering, "recover", stop)
    with pytest.raises(Stopped):
        cut_and_recover(Run.open(options), cutter)
    assert all((path / "model.safetensors").is_file() for path in made)
    return len(made)


def test_a_cut_is_made_once(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(options, monkeypatch) == 1
    assert cuts(options, monkeypatch) == 0
    assert cuts(options.model_copy(update={"speed": True}), monkeypatch) == 0


def test_a_cut_without_its_result_is_made_again(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recovering, "atomic_file", stop)
        with pytest.raises(Stopped):
            cut_and_recover(Run.open(options), cut)
    assert cuts(options, monkeypatch) == 1


def test_a_result_that_cannot_be_read_is_made_again(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(options, monkeypatch) == 1
    (Run.open(options).work_dir / "pruned.json").write_text("{", encoding="utf-8")
    assert cuts(options, monkeypatch) == 1
