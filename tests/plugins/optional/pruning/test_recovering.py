"""A cut that waits for its recovery: kept, taken up again, or made anew."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning import recovering
from apt.plugins.optional.pruning.cutting import cut
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.recovering import cut_and_recover
from apt.plugins.optional.pruning.run import Run


class Stopped(Exception):
    """Stands for whatever ends a call."""


def stop(*_: Any, **__: Any) -> AbstractContextManager[Any]:
    raise Stopped


@pytest.fixture
def options(llama_dir: Path, tmp_path: Path) -> PruneOptions:
    ids = torch.randint(2, 280, (24, 32), generator=torch.Generator().manual_seed(1))
    save_rows({"calibration": rows_from_ids(ids, source="test")}, tmp_path / "rows.npz")
    return PruneOptions(
        model=str(llama_dir), output=tmp_path / "out", calibration=str(tmp_path / "rows.npz"), recover="kd",
        effort="light", speed=False,
    )  # fmt: skip


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


def test_another_call_begins_anew(options: PruneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(options, monkeypatch) == 1
    assert cuts(options.model_copy(update={"ratio": 0.4}), monkeypatch) == 1


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
