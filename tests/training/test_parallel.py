"""Several processes: DDP over two gloo processes equals one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parallel_child import trained

CHILD = Path(__file__).with_name("parallel_child.py")


@pytest.fixture(scope="module")
def two(on_two_processes: Callable[..., Any]) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a job of two processes, and what each of them found."""
    folder, found = on_two_processes(CHILD)
    assert (folder / "stdout").read_text() == ""
    return folder, found


@pytest.mark.parametrize("loss", ["ce", "distill"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(tmp_path: Path, two: Any, loss: str, accumulate: int) -> None:
    alone = trained(tmp_path, loss, 1)
    for found in (ranks[f"{loss}-{accumulate}"] for ranks in two[1]):
        assert found["tokens"] == alone["tokens"] and found["best"] == alone["best"]
        assert len(found["log"]) == len(alone["log"])
        for ours, theirs in zip(found["log"], alone["log"], strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                tolerance = 1e-4 if name.startswith(("kd/top1", "train/grad")) else 1e-6
                assert ours[name] == pytest.approx(value, rel=tolerance, abs=1e-6), name
        for name, values in alone["weights"].items():
            assert found["weights"][name] == pytest.approx(values, abs=2e-5), name


def test_both_processes_end_with_the_same_weights(two: Any) -> None:
    for key in ("ce-1", "ce-2", "distill-1", "distill-2", "resumed"):
        assert two[1][0][key] == two[1][1][key], key


def test_one_process_saves(two: Any) -> None:
    states = list((two[0] / "ce-1").glob("checkpoint-*"))
    assert states
    for state in states:
        names = {p.name for p in state.iterdir()}
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "digests.json"} <= names
        assert len(names) == 9


def test_a_resumed_run_of_two_is_exact(two: Any) -> None:
    for ranks in two[1]:
        assert ranks["resumed"]["weights"] == ranks["distill-2"]["weights"]
        assert [e.get("train/loss") for e in ranks["resumed"]["log"]] == [
            e.get("train/loss") for e in ranks["distill-2"]["log"]
        ]


def test_all_processes_skip_and_stop_together(two: Any) -> None:
    first, second = two[1]
    assert first["skip"] == second["skip"] and first["skip"][0] == 1
    assert "not a finite number at step 3" in first["stop"]
    assert first["stop"] == second["stop"]


def test_all_processes_are_told_of_a_refusal(two: Any) -> None:
    for ranks in two[1]:
        assert "holds a run with another config" in ranks["foreign"]


def test_another_number_of_processes_is_another_run(two: Any) -> None:
    from apt.console.errors import UsageError

    with pytest.raises(UsageError, match="processes"):
        trained(two[0] / "ce-2", "ce", 2, accumulate=2)
