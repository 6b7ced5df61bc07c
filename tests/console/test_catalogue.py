"""The catalogue: every message is in it, and a finished message comes out translated with its values intact."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt import language
from apt.console import catalogue
from apt.console.table import Table
from apt.console.templates import Template, parse

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import message_templates  # noqa: E402
import messages  # noqa: E402

ENTRIES: dict[str, str] = json.loads(catalogue.path("zh-CN").read_text(encoding="utf-8"))
CHINESE = catalogue.load("zh-CN")


def test_every_message_of_the_package_is_translated_and_no_entry_is_left_over() -> None:
    faults = messages.check(messages.messages(), ENTRIES)
    assert not faults, "\n".join(["python tools/messages.py --missing", *faults])


def test_a_message_that_is_new_in_the_source_is_found(tmp_path: Path) -> None:
    source = tmp_path / "apt" / "room.py"
    source.parent.mkdir()
    source.write_text(
        "def f(name, n, error, hard):\n"
        '    """Not a message of ours."""\n'
        '    verb = "cannot break" if hard else "broke"\n'
        '    output.warn(f"{verb} the {name!r}: {error}")\n'
        "    raise BadInputError(f\"{n:,} {'odd' if hard else 'even'} things\", hint=\"mend it\")\n",
        encoding="utf-8",
    )
    assert set(message_templates.extract(tmp_path)) == {
        "cannot break", "broke", "{verb} the {name!r}: {error}",
        "{n:d} odd things", "{n:d} even things", "mend it",
    }  # fmt: skip


def test_help_of_a_command_is_one_message_a_paragraph_without_its_examples() -> None:
    text = "Do it.\n\nMore\nof it.\n\n\b\nExamples:\n  apt_model do\n\n\b\nExit codes: 0 done,\n1 not."
    assert message_templates.paragraphs(text) == ["Do it.", "More of it.", "Exit codes: 0 done, 1 not."]


def test_the_file_is_sorted_with_an_entry_a_line() -> None:
    text = catalogue.path("zh-CN").read_text(encoding="utf-8")
    assert text == json.dumps(ENTRIES, ensure_ascii=False, indent=0, sort_keys=True) + "\n"
    assert len(text.splitlines()) == len(ENTRIES) + 2


def test_chinese_is_written_with_chinese_punctuation() -> None:
    odd = [v for v in ENTRIES.values() if re.search(r"[\u4e00-\u9fff][,;:!?]|[\u4e00-\u9fff]\(", v)]
    assert not odd, odd


def fields(text: str) -> list[tuple[str, str]]:
    template = parse(text)
    return list(zip(template.names, template.kinds, strict=True))


TEMPLATES = {k: v for k, v in ENTRIES.items() if fields(k)}
#: Whole texts without a letter that a value could be confused with.
plain_values = st.text(st.sampled_from("xyz019./-_模型é😀"), min_size=1, max_size=8).map(lambda s: f"9{s}9")
quoted_values = st.text(max_size=12).map(repr)
figures = st.one_of(st.integers(0, 10**9).map("{:,}".format), st.floats(-1e6, 1e6).map("{:.3g}".format))


def filled(text: str, values: dict[str, str]) -> str:
    return parse(text).fill(values)


@pytest.mark.parametrize("key", TEMPLATES, ids=range(len(TEMPLATES)))
def test_no_other_template_takes_a_message_for_its_own(key: str) -> None:
    made = {"": "9z{}9", "!r": "'9z{}'", ":d": "9{}"}
    values = {name: made[kind].format(i) for i, (name, kind) in enumerate(fields(key))}
    assert CHINESE.translate(filled(key, values)) == filled(TEMPLATES[key], values)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), key=st.sampled_from(sorted(TEMPLATES)))
def test_values_come_through_whatever_they_are(data: Any, key: str) -> None:
    kinds = {"": plain_values, "!r": quoted_values, ":d": figures}
    values = {name: data.draw(kinds[kind]) for name, kind in fields(key)}
    told = CHINESE.translate(filled(key, values))
    assert told == filled(TEMPLATES[key], values)


words = st.sampled_from(sorted({w for k in ENTRIES for w in re.split(r"(\W+)", k) if w}))


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=200), st.lists(words, max_size=40).map("".join)))
def test_no_text_is_too_strange(text: str) -> None:
    told = CHINESE.translate(text)
    assert isinstance(told, str)
    assert told == CHINESE.translate(text)


def test_a_message_inside_a_message_is_translated_too() -> None:
    text = "plugin x is not ready: needs gguf>=0.17; mend it with: apt_model plugin install x"
    assert CHINESE.translate(text) == "插件 x 未就绪：需要 gguf>=0.17；修复命令：apt_model plugin install x"
    assert CHINESE.translate("Permission denied: /a b") == "权限不足：/a b"
    assert CHINESE.translate("[17/18] restored: difference (not yet run)") == "[17/18] restored：difference（尚未运行）"
    hint = "2 more: line 5: unknown option 'b' of operation 'test'; line 9: unknown step 'z'"
    assert CHINESE.translate(hint) == "另有 2 处：第 5 行：操作 'test' 没有选项 'b'；第 9 行：未知的步骤 'z'"
    option = "r.yaml:5: option 'window' of step 'x': 'a' should be a valid integer"
    assert CHINESE.translate(option) == "r.yaml:5：步骤 'x' 的选项 'window'：'a' 应为有效的整数"
    list_of_three = "56 of 56 tensors exact, 9 greedy tokens equal, KL 2e-07, same top token 99.9 % in llama.cpp"
    assert CHINESE.translate(list_of_three) == (
        "56 个张量中 56 个完全一致、9 个贪心 token 相同、KL 2e-07，llama.cpp 中首选 token 相同率 99.9 %"
    )
    assert CHINESE.translate("my.yaml:3: unknown step 'a'") == "my.yaml:3：未知的步骤 'a'"


def test_a_value_that_is_a_known_word_stays_where_it_is_a_name() -> None:
    assert CHINESE.translate("no such text: none") == "没有此文本：none"
    table = Table("Findings", ("name", "size"), [("none", "none"), ("Models", "12")])
    told = CHINESE.table(table)
    assert (told.title, list(told.columns)) == ("发现", ["名称", "大小"])
    assert told.rows == [["none", "无"], ["Models", "12"]]


def test_text_of_others_is_left_alone() -> None:
    for text in (
        "",
        "x",
        "The quick brown fox",
        "你好，世界",
        "a: b",
        "(x)",
        "99 Luftballons",
        "Unexpected end of the line",
    ):
        assert CHINESE.translate(text) == text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh-CN"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_SG", "LANG": "en_US"}, "zh-CN"),
        ({"LC_ALL": "", "LC_MESSAGES": "", "LANG": "zh"}, "zh-CN"),
        ({"APT_LANG": "en", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        ({"APT_LANG": "zh"}, "zh-CN"),
        ({"APT_LANG": "zh-CN", "LANG": "en_US.UTF-8"}, "zh-CN"),
        ({"APT_LANG": "zh_CN.UTF-8"}, "zh-CN"),
        ({"APT_LANG": "ZH-cn"}, "zh-CN"),
        ({"APT_LANG": "xx", "LANG": "zh_CN"}, "en"),
    ],
    ids=str,
)
def test_the_language_is_that_of_apt_lang_or_else_of_the_locale(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("APT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_a_catalogue_that_is_not_there_leaves_english() -> None:
    assert catalogue.load("tlh").translate("no models") == "no models"


def test_templates() -> None:
    template = parse("{{x}} {a!r} of {n:d}, {rest}")
    assert template.names == ("a", "n", "rest")
    assert template.match("{x} 'it\\'s, of 3' of 1,024, b, c") == {"a": "'it\\'s, of 3'", "n": "1,024", "rest": "b, c"}
    assert template.match("{x} word of 3, b") is None
    assert template.match("{x} None of 3, ") == {"a": "None", "n": "3", "rest": ""}
    assert Template(("a ", " b"), ("x",), ("",)).match("a b") is None
    assert parse("{a}: in x: {b}").match("p: in x: q: in x: r") == {"a": "p", "b": "q: in x: r"}
    assert parse("{a} of {b}").match("one two of three") is None
