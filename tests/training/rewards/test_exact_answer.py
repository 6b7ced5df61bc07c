"""What counts as the right answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from apt.training.contract import Resources
from apt.training.rewards.exact_answer import ExactAnswer, ExactAnswerOptions


def judge(text: str, answer: Any, **options: Any) -> float | None:
    reward = ExactAnswer(ExactAnswerOptions(**options), Resources())
    return reward([text], [{"answer": answer}])[0]


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("so it is 42.", "42", 1.0),
        ("first 42, then 41", "42", 0.0),
        ("that makes 1,000", 1000, 1.0),
        ("1000.0", "1,000", 1.0),
        ("it is -3", "-3", 1.0),
        ("8-3", "3", 1.0),
        ("答案是 7。", "7", 1.0),
        ("no number here", "5", 0.0),
        ("", "5", 0.0),
        ("it is 72", "48 / 2 = 24, 48 + 24 = 72\n#### 72", 1.0),
        ("the answer is yes.", "yes", 1.0),
        ("a casino", "no", 0.0),
        ("the answer is 是", "是", 1.0),
        ("anything", None, None),
        ("anything", " ", None),
    ],
)
def test_the_last_number_or_word_counts(text: str, answer: Any, wanted: float | None) -> None:
    assert judge(text, answer) == wanted


def test_a_pattern_says_where_the_answer_stands() -> None:
    assert judge("<answer>5</answer> of 9", "5", pattern=r"<answer>(.*?)</answer>") == 1.0
    assert judge("<answer>b</answer>", "a", pattern=r"<answer>(.*?)</answer>") == 0.0
    assert judge("5", "5", pattern=r"<answer>(.*?)</answer>") == 0.0
    assert judge("A then B", "B", pattern="[A-D]") == 1.0
    with pytest.raises(ValidationError, match="no regular expression"):
        ExactAnswerOptions(pattern="(")


def test_a_row_without_an_answer_cannot_be_judged() -> None:
    reward = ExactAnswer(ExactAnswerOptions(key="gold"), Resources())
    assert reward(["1", "1"], [{"answer": "1"}, {"gold": "1"}]) == [None, 1.0]


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_itself_with_and_without_separators(number: int) -> None:
    assert judge(f"the answer is {number:,}", str(number)) == 1.0
    assert judge(f"the answer is {number + 1}", str(number)) == 0.0


@given(st.text(), st.text())
def test_any_text_is_judged(text: str, answer: str) -> None:
    assert judge(text, answer) in (0.0, 1.0, None)
