"""Goals as they are written, and the figures that they become."""

from pathlib import Path

import pytest

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UsageError
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.options import PruneOptions


def options(**changes) -> PruneOptions:
    return PruneOptions.of_command(model="m", output=Path("out"), **changes)


@pytest.fixture(scope="module")
def dense(llama_dir: Path) -> Checkpoint:
    return Checkpoint.open(llama_dir)


def test_a_quarter_goes_when_nothing_is_asked(dense: Checkpoint):
    assert options().goal(dense) == Goal(ratio=0.25)
    assert options(ratio=0.4).goal(dense) == Goal(ratio=0.4)
    assert options(pattern="2:4").goal(dense) == Goal(pattern=Pattern(2, 4))
    assert options(target_speed=1.5).goal(dense) == Goal(speed=1.5)


def test_parameters_are_a_number_or_a_share(dense: Checkpoint):
    assert options(target_params="20k").goal(dense) == Goal(parameters=20_000)
    assert options(target_params=20_000).goal(dense) == Goal(parameters=20_000)
    for text in ("70%", "0.7x"):
        assert options(target_params=text).goal(dense) == Goal(parameters=int(0.7 * dense.parameters))


def test_bytes_are_of_the_files_and_headers_are_taken_off(dense: Checkpoint):
    headers = dense.size_bytes - sum(t.size_bytes for t in dense.tensors.values())
    assert headers > 0
    assert options(target_bytes="64KiB").goal(dense) == Goal(size_bytes=65536 - headers)
    assert options(target_bytes="50%").goal(dense) == Goal(size_bytes=int(0.5 * dense.size_bytes) - headers)
    with pytest.raises(UsageError, match="headers alone"):
        options(target_bytes=100).goal(dense)


@pytest.mark.parametrize(("name", "value"), [("target_params", "1B"), ("target_bytes", "1GiB")])
def test_a_target_that_is_met_already_is_refused(dense: Checkpoint, name: str, value: str):
    with pytest.raises(UsageError, match="are not fewer than the model has"):
        options(**{name: value}).goal(dense)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.5, "pattern": "2:4"}, "^--ratio and --pattern were given; give one of them$"),
        ({"target_params": "1M", "target_bytes": "1MB"}, "--target-params and --target-bytes"),
        ({"ratio": 1.0}, "--ratio 1.0"),
        ({"pattern": "4:2"}, "--pattern 4:2: not an N:M pattern"),
        ({"target_params": "many"}, "--target-params many: 'many' is not a number such as 700M"),
        ({"target_params": "130%"}, "no share between 0 and 1"),
        ({"target_bytes": "1.5x"}, "no share between 0 and 1"),
        ({"target_speed": 0.5}, "--target-speed 0.5"),
        ({"effort": "much"}, "--effort much"),
        ({"seed": 2**32}, "--seed 4294967296"),
    ],
)
def test_a_wrong_goal_is_told_in_one_line(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        options(**changes)
