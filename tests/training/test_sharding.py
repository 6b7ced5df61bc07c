"""Sharded parameters: a run over two gloo processes is the run of one, its files are too, and it resumes exactly."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharding_child import CASES, checkpoint, trained
from training_helpers import small_config, small_model, small_rows

from apt.console.errors import ExitCode, UnsupportedError
from apt.training.runner import run
from apt.training.saved_states import is_whole

CHILD = Path(__file__).with_name("sharding_child.py")

#: Muon orthogonalises in bf16, where the order of sums is seen.
TOLERANCES = {"muon": 5e-3}


@pytest.fixture(scope="module")
def two(on_two_processes: Callable[..., Any], llama_dir: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a job of two processes, and what each of them found."""
    folder, found = on_two_processes(CHILD, str(llama_dir))
    return folder, found


@pytest.mark.parametrize("name", CASES)
def test_sharded_training_equals_one_process(tmp_path: Path, two: Any, name: str) -> None:
    alone, (first, second) = trained(tmp_path, name, 1), (ranks[name] for ranks in two[1])
    assert first == second
    assert first["best"] == alone["best"]
    tolerance = TOLERANCES.get(name, 2e-5)
    assert first["gradient"] == pytest.approx(alone["gradient"], rel=max(1e-4, tolerance))
    for ours, theirs in zip(first["curve"], alone["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=max(1e-6, tolerance / 10))
    for key, values in alone["weights"].items():
        assert first["weights"][key] == pytest.approx(values, abs=tolerance), key


def test_the_best_weights_may_be_those_in_the_middle_or_at_the_start(two: Any) -> None:
    begun = {name: p.flatten().tolist() for name, p in small_model().named_parameters()}
    for found in two[1]:
        assert 0 < found["adamw"]["best"] < 8
        assert found["spoiled"]["best"] == 0
        assert found["spoiled"]["weights"] == begun


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resumed_run_is_exact(two: Any, name: str) -> None:
    for ranks in two[1]:
        assert ranks[f"{name} resumed"] == ranks[name]


def test_a_saved_state_holds_whole_tensors(two: Any) -> None:
    shapes = {name: p.shape for name, p in small_model().named_parameters()}
    states = list((two[0] / "skipped").glob("checkpoint-*"))
    assert states and all(is_whole(state) for state in states)
    for state in states:
        saved = {n.removeprefix("model."): t.shape for n, t in load_file(state / "model.safetensors").items()}
        assert saved == shapes
        optimizer = torch.load(state / "optimizer.pt", weights_only=True)
        assert sorted(held["exp_avg"].shape for held in optimizer["state"].values()) == sorted(shapes.values())


def test_a_step_that_is_no_number_is_skipped_by_all(two: Any) -> None:
    first, second = (ranks["skipped"] for ranks in two[1])
    assert first == second and first[0] == 1
    assert all(math.isfinite(value) for value in first[1])


def test_timing_steps_leaves_the_model_as_it_was(two: Any) -> None:
    assert all(ranks["timed"] for ranks in two[1])


def test_the_written_checkpoint_is_that_of_one_process(tmp_path: Path, two: Any, llama_dir: Path) -> None:
    assert checkpoint(tmp_path, str(llama_dir), batch_rows=4) is None
    one, out = tmp_path / "out", two[0] / "job" / "out"
    assert {p.name for p in out.iterdir()} == {p.name for p in one.iterdir()}
    ours, theirs = load_file(out / "model.safetensors"), load_file(one / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        torch.testing.assert_close(ours[name].float(), tensor.float(), atol=2e-5, rtol=1e-2)
    assert not (two[0] / "job" / ".out.run").exists()


def test_one_process_has_nothing_to_shard_over(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="there is one") as caught:
        run(small_config(sharding="fsdp2"), small_model(), small_rows(), run_dir=tmp_path / "run")
    assert caught.value.exit_code is ExitCode.UNSUPPORTED
    assert not (tmp_path / "run").exists()
