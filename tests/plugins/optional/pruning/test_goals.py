import pytest

from apt.console.errors import UsageError
from apt.plugins.optional.pruning.goals import Goal, Pattern


@pytest.mark.parametrize("text", ["", "2", "4:4", "5:4", "0:4", "a:b", "2:4:8", "２:４", "2:400"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UsageError, match="is no N:M pattern"):
        Pattern.parse(text)


def test_a_pattern_states_the_share_that_goes():
    assert Pattern.parse("2:4").share == 0.5
    assert Pattern.parse("2:8").share == 0.75
    assert str(Pattern.parse("4:8")) == "4:8"


def test_exactly_one_goal_is_given():
    with pytest.raises(UsageError, match="give one of"):
        Goal()
    with pytest.raises(UsageError, match="give one of"):
        Goal(ratio=0.5, parameters=3)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_lies_between_nothing_and_all(ratio: float):
    with pytest.raises(UsageError, match="is not between 0 and 1"):
        Goal(ratio=ratio)


def test_only_ratio_and_pattern_state_a_share():
    assert Goal(ratio=0.25).share == 0.25
    assert Goal(pattern=Pattern(2, 4)).share == 0.5
    assert Goal(parameters=1000).share is None
    assert str(Goal(parameters=1000)) == "1,000 parameters"
    assert str(Goal(speed=1.5)) == "1.5 times the speed"
