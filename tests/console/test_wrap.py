"""Lines as a terminal shows them."""

from hypothesis import given
from hypothesis import strategies as st

from apt.console.output import display_width
from apt.console.wrap import wrap


def test_chinese_is_broken_by_columns_and_words_are_not() -> None:
    assert wrap("把结果以 JSON 写到 stdout。", 12) == "把结果以\nJSON 写到\nstdout。"
    assert wrap("一二三四五六", 6, "a ", "  ") == "a 一二\n  三四\n  五六"


def test_no_line_begins_with_a_mark_that_ends_something() -> None:
    assert wrap("一二三，四五六", 6) == "一二\n三，四\n五六"
    assert wrap("一二三（四五）", 8) == "一二三\n（四五）"


@given(st.text(st.sampled_from("模型，。（） abc/-"), max_size=80), st.integers(12, 40))
def test_nothing_is_lost_and_lines_are_short(text: str, width: int) -> None:
    lines = wrap(text, width).split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())
    longest = max((display_width(run) for run in text.split()), default=0)
    assert all(display_width(line) <= max(width, longest) for line in lines)
