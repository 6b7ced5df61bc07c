"""A model that is too large for the memory is cut layer by layer, or the call says why that does not go."""

from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError
from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning.operation import preview, prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.run import Run
from apt.plugins.optional.pruning.streaming.placing import placed, should_stream


@pytest.fixture
def text(tmp_path: Path) -> Path:
    ids = torch.randint(2, 280, (12, 32), generator=torch.Generator().manual_seed(1))
    save_rows({s: rows_from_ids(ids, source="test") for s in ("calibration", "heldout")}, tmp_path / "rows.npz")
    return tmp_path / "rows.npz"


@pytest.fixture
def free(llama_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Set the free memory, in multiples of the float32 model."""

    def set_to(times: float) -> None:
        count = int(times * 4 * Checkpoint.open(llama_dir).parameters)
        monkeypatch.setattr("apt.plugins.optional.pruning.streaming.placing.available_bytes", lambda: count)

    return set_to


def options(model: Path, tmp_path: Path, text: Path, **changes) -> PruneOptions:
    given = {"model": str(model), "output": tmp_path / "out", "calibration": str(text), "speed": False}
    return PruneOptions(**{**given, **changes})


def test_the_bound_is_half_of_the_memory(llama_dir: Path, free):
    for times, wanted in ((2.0, False), (1.999, True)):
        free(times)
        assert should_stream(Checkpoint.open(llama_dir)) is wanted


@pytest.mark.parametrize("strategy", ["structured", "wanda"])
def test_what_can_be_streamed_is(new_llama, tmp_path: Path, text: Path, free, capfd, strategy: str):
    free(0.5)
    model = new_llama(tmp_path / "model", num_hidden_layers=8)  # with few layers the streams outweigh what is saved
    told = options(model, tmp_path, text, strategy=strategy, effort="light")
    planned = preview(told)
    assert planned.streamed and any("one layer at a time" in str(row) for row in planned.tables()[1].rows)
    free(100)
    assert planned.memory_bytes < preview(told).memory_bytes
    free(0.5)
    result = prune(told)
    assert "layer by layer from the files, as with --stream" in capfd.readouterr().err
    assert result.reload_skipped


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "taylor"}, "needs the whole model"), ({"effort": "full"}, "effort full needs the whole model"),
        ({"calibration": "self"}, "sampled from a model in memory"),
    ],
)  # fmt: skip
def test_what_cannot_is_refused_or_warned_of(llama_dir: Path, tmp_path: Path, text: Path, free, capfd, changes, reason):
    run = Run.open(options(llama_dir, tmp_path, text, **changes))
    free(0.9)
    with pytest.raises(UnsupportedError, match=reason):
        placed(run)
    free(1.1)
    assert placed(run) is run
    assert reason in capfd.readouterr().err
    free(3.0)
    assert placed(run) is run
    assert not capfd.readouterr().err
