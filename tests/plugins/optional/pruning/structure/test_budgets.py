"""Goals become budgets; what cannot be met is refused with the nearest plans."""

from pathlib import Path

import pytest

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.contract import Task
from apt.plugins.optional.pruning.decoder.blocks import sizes_of
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.strategies.structured import StructuredStrategy
from apt.plugins.optional.pruning.structure import budgets
from apt.plugins.optional.pruning.structure.decode_times import DecodeTimes
from apt.plugins.optional.pruning.structure.footprint import Footprint


@pytest.fixture
def checkpoint(llama_dir: Path) -> Checkpoint:
    return Checkpoint.open(llama_dir)


@pytest.fixture
def rows():
    import torch

    torch.manual_seed(3)
    return rows_from_ids(torch.randint(2, 280, (12, 32)), source="test")


@pytest.mark.parametrize("effort", ["light", "fast"])
def test_parameters_and_bytes_are_kept(checkpoint: Checkpoint, rows, effort):
    for goal in (
        Goal(parameters=round(0.85 * checkpoint.parameters)),
        Goal(size_bytes=int(3.4 * checkpoint.parameters)),
    ):
        plans = StructuredStrategy().preview(checkpoint, goal)
        pruned = StructuredStrategy().prune(Task(checkpoint.load(), checkpoint.architecture, goal, rows, effort))
        parameters = sum(p.numel() for p in pruned.model.parameters())
        limit = goal.parameters or goal.size_bytes / 4
        assert 0.97 * limit <= parameters <= limit
        assert all(0.97 * limit <= plan.parameters <= limit for plan in plans)


def test_the_stored_dtype_counts(checkpoint: Checkpoint, rows):
    import torch

    goal = Goal(size_bytes=int(1.7 * checkpoint.parameters))
    task = Task(checkpoint.load(), checkpoint.architecture, goal, rows, "light", stored_dtype=torch.bfloat16)
    pruned = StructuredStrategy().prune(task)
    assert 0.97 * goal.size_bytes <= 2 * sum(p.numel() for p in pruned.model.parameters()) <= goal.size_bytes


def test_speed_takes_the_largest_plan_that_is_predicted_to_reach_it(checkpoint: Checkpoint, monkeypatch):
    sizes = sizes_of(checkpoint.architecture, checkpoint.config)
    times = DecodeTimes(1.0, 2.0, ((sizes.attention_weights, 0.0),), ((0, -1.0), (sizes.mlp_weights, 0.0)))
    monkeypatch.setattr(budgets, "_measured_times", lambda *_: times)
    monkeypatch.setattr(budgets, "_MEASURED", {})
    plans = StructuredStrategy().preview(checkpoint, Goal(speed=1.25))
    assert plans
    budget = budgets.checkpoint_budget(Goal(speed=1.25), checkpoint, sizes)
    assert budget.dense == 7.0 and budget.limit == pytest.approx(5.6)
    with pytest.raises(UnsupportedError, match=r"no legal cut gives 50 times the speed") as refused:
        StructuredStrategy().preview(checkpoint, Goal(speed=50.0))
    assert "times the speed (hidden 32, 1 layers" in refused.value.hint


def test_a_real_measurement_gives_plans_for_a_speed(checkpoint: Checkpoint):
    sizes = sizes_of(checkpoint.architecture, checkpoint.config)
    given = (type(checkpoint.load()), checkpoint.config, checkpoint.architecture, sizes, checkpoint.stored_dtype)
    times = budgets.decode_times(*given)
    assert times.step_seconds(sizes) > 0.0
    assert times is budgets.decode_times(*given)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (Goal(pattern=Pattern(2, 4)), "structured pruning cannot give 2:4"),
        (Goal(speed=0.9), "a cut cannot be asked for"),
        (Goal(parameters=10), "no legal cut gives 10 parameters"),
        (Goal(size_bytes=10**12), "the dense model already has no more than"),
    ],
)
def test_refusals(checkpoint: Checkpoint, goal, message):
    with pytest.raises(UnsupportedError, match=message):
        StructuredStrategy().preview(checkpoint, goal)


def test_footprints_of_plans_are_those_of_the_cut_model(checkpoint: Checkpoint, rows):
    pruned = StructuredStrategy().prune(
        Task(checkpoint.load(), checkpoint.architecture, Goal(ratio=0.3), rows, "light")
    )
    after = sizes_of(checkpoint.architecture, pruned.model.config.to_dict())
    told = Footprint.of_checkpoint(checkpoint)
    assert told.parameters(after) == sum(p.numel() for p in pruned.model.parameters())


def test_sizes_per_layer_are_refused_with_the_reason(checkpoint: Checkpoint, rows):
    task = Task(checkpoint.load(), checkpoint.architecture, Goal(ratio=0.3), rows, settings={"per_layer": True})
    with pytest.raises(UnsupportedError, match="plain from_pretrained could not load"):
        StructuredStrategy().prune(task)
    with pytest.raises(UnsupportedError, match="plain from_pretrained could not load"):
        StructuredStrategy().stream_plan(
            checkpoint, Goal(ratio=0.3), effort="light", seed=0, settings={"per_layer": True}
        )
