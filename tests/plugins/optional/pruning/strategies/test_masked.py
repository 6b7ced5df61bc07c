"""Masks made block by block: what is zero, and the same layer by layer from the files as in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError
from apt.evaluation.texts import rows_from_ids, save_rows
from apt.plugins.optional.pruning.contract import StreamingStrategy
from apt.plugins.optional.pruning.operation import prune
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.result import PruneResult
from apt.plugins.optional.pruning.strategies.reconstruct import ReconstructStrategy
from apt.plugins.optional.pruning.strategies.taylor import TaylorStrategy
from apt.plugins.optional.pruning.strategies.unstructured import UnstructuredStrategy

GOALS: dict[str, dict[str, Any]] = {"ratio": {"ratio": 0.5}, "2:4": {"pattern": "2:4"}}


@pytest.fixture(scope="module")
def dense(new_llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_llama(tmp_path_factory.mktemp("dense") / "llama", num_hidden_layers=2, initializer_range=0.2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rows.npz"
    ids = torch.randint(2, 280, (24, 64), generator=torch.Generator().manual_seed(1))
    lengths = torch.randint(30, 65, (24,), generator=torch.Generator().manual_seed(2))
    rows = rows_from_ids(ids, source="test", lengths=lengths)
    save_rows({"calibration": rows.take(range(18)), "heldout": rows.take(range(18, 24))}, path)
    return path


def cut(dense: Path, text: Path, output: Path, **changes: Any) -> PruneResult:
    result = prune(
        PruneOptions(model=str(dense), output=output, calibration=str(text), tokens=1024, speed=False, **changes)
    )
    assert isinstance(result, PruneResult)
    return result


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("strategy", ["magnitude", "wanda", "sparsegpt", "reconstruct"])
def test_streamed_is_in_memory(dense: Path, text: Path, tmp_path: Path, strategy: str, goal: str):
    effort = "light" if strategy == "reconstruct" else "fast"
    told = [
        cut(dense, text, tmp_path / name, strategy=strategy, effort=effort, stream=name == "streamed", **GOALS[goal])
        for name in ("whole", "streamed")
    ]
    whole, streamed = (Checkpoint.open(tmp_path / name) for name in ("whole", "streamed"))
    assert list(whole.tensors) == list(streamed.tensors)
    for name in whole.tensors:
        one, other = whole.read(name), streamed.read(name)
        assert torch.equal(one == 0, other == 0), name
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        if "proj" in name:
            assert int((one == 0).sum()) == one.numel() // 2
            if goal == "2:4":
                assert int((one.reshape(-1, 4) != 0).sum(1).max()) == 2
    assert told[0].removed_share == told[1].removed_share == 0.5
    for one_text, other_text in ((told[0].heldout, told[1].heldout), (told[0].calibration, told[1].calibration)):
        assert one_text.perplexity_after.value == pytest.approx(other_text.perplexity_after.value, rel=1e-4)


def test_reconstruct_fits_layer_by_layer_too(dense: Path, text: Path, tmp_path: Path):
    last = []
    for effort in ("light", "fast", "full"):
        result = cut(dense, text, tmp_path / effort, strategy="reconstruct", effort=effort, stream=True, ratio=0.5)
        assert result.removed_share == 0.5
        errors = [layer.stream_error for layer in result.layers]
        assert all(error is not None for error in errors)
        last.append(errors[-1])
    assert last[1] < last[0] and last[2] < last[0]


def test_what_looks_at_the_whole_model_is_not_streamed(dense: Path, text: Path, tmp_path: Path):
    assert isinstance(ReconstructStrategy(), StreamingStrategy)
    for strategy in (TaylorStrategy(), UnstructuredStrategy()):
        assert not isinstance(strategy, StreamingStrategy)
        with pytest.raises(UnsupportedError, match="needs the whole model in memory"):
            cut(dense, text, tmp_path / "out", strategy=strategy.name, stream=True, ratio=0.5)
    assert not (tmp_path / "out").exists()
