"""The command line in Chinese: help, errors and tables; JSON and exit codes are those of every language."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apt.cli import lazy
from apt.console import output
from apt.plugins import host
from apt.plugins.core import CORE_COMMANDS

ROOT = Path(__file__).parents[2]
COMMANDS = [c.name for c in CORE_COMMANDS] + ["huggingface", "cloud-storage", "ollama", "distill", "prune"]
#: Three words of English in a row are a sentence that was left over.
ENGLISH = re.compile(r"\b[A-Za-z]{2,}[,;:]? [a-z]{2,}[,;:]? [a-z]{2,}")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(autouse=True)
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APT_LANG", "zh-CN")


def pages(command: Any, words: list[str]) -> Iterator[list[str]]:
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from pages(child, [*words, name])


def prose(text: str) -> str:
    """Return a help page without its examples, its commands in backquotes and the line of its usage."""
    text = re.sub(r"^( *)示例：\n(\1  .*\n)+", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "``", text).partition("\n")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, cli: Callable) -> None:
    record = host.current().data.command(name)
    assert record is not None
    for words in list(pages(lazy.load_command(record), [name])):
        ran = cli(*words, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith("用法：apt_model")
        assert "选项：" in ran.out
        assert "显示本说明并退出。" in ran.out
        assert not ENGLISH.search(prose(ran.out)), prose(ran.out)
        told = [line for line in prose(ran.out).splitlines() if line.strip()]
        assert sum(bool(CHINESE.search(line)) for line in told) > 0.6 * len(told), ran.out
        long = [line for line in told if output.display_width(line) > 80]
        assert not long, long


def test_help_of_the_root(cli: Callable) -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert not ENGLISH.search(ran.out)
    assert {"主要任务：", "模型：", "插件：", "选项：", "示例："} <= set(ran.out.splitlines())
    assert max(map(output.display_width, ran.out.splitlines())) <= 79
    lines = [line for line in ran.out.splitlines() if re.match(r"  (info|list|size|debug) ", line)]
    starts = {output.display_width(line[: line.index(CHINESE.findall(line)[0])]) for line in lines}
    assert len(lines) == 4
    assert starts == {17}


ERRORS = [
    (["frobnicate"], 3, "没有名为 'frobnicate' 的命令（运行 apt_model --help 可列出命令）"),
    (["inof", "tiny"], 3, "没有名为 'inof' 的命令（你是指 'info' 吗？）"),
    (["info"], 2, "缺少参数 'MODEL'（用法见 apt_model info --help）"),
    (["info", "tiny", "--bad"], 2, "没有此选项"),
    (["info", "不存在"], 3, "没有模型 '不存在'：既不是路径，也不在模型库中（已知：tiny）"),
    (["test", "tiny", "--batch-rows", "x"], 2, "'--batch-rows' 的值无效："),
    (["test", "tiny", "--batch-rows", "0"], 2, "'--batch-rows' 的值无效："),
    (["test", "tiny", "--text", "none.txt"], 3, "没有此文本：none.txt"),
    (["compare", "tiny"], 2, "compare 至少需要两个模型（apt_model compare A B）"),
    (["run", "nosuch"], 3, "没有配方 'nosuch'：既不是文件，也不是随软件提供的（已知：quickstart）"),
    (["run", "quickstart", "--set", "x"], 2, "--set 'x' 不是 INPUT=VALUE 的形式"),
    (["run", "quickstart", "--set", "rato=1", "--dry-run"], 2, "quickstart 没有输入 'rato'（你是指 'ratio' 吗？）"),
    (["plugin", "info", "olama"], 3, "没有名为 'olama' 的插件（你是指 'ollama' 吗？）"),
    (["prune", "tiny", "-o", "out", "--ratio", "7"], 2, "--ratio 7.0：输入应小于 1"),
    (["cloud-storage", "list", "--from", "/no/where"], 3, "/no/where 处没有备份库（cloud-storage backup 会创建它）"),
]


@pytest.mark.parametrize(("words", "code", "told"), ERRORS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_errors(words: list[str], code: int, told: str, cli: Callable) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("错误：")
    assert told in ran.err
    assert not ENGLISH.search(ran.err)
    assert len(ran.err.splitlines()) == 1


def test_a_fault_of_a_recipe_keeps_file_and_line(cli: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "配方.yaml"
    recipe.write_text("steps:\n  - name: a\n    operation: tset\n  - name: a\n    operation: test\n", encoding="utf-8")
    ran = cli("run", recipe, "--out", tmp_path / "out")
    assert ran.code == 2
    assert f"{recipe}:3：未知的操作 'tset'（你是指 'test' 吗？；另有" in ran.err
    assert not ENGLISH.search(ran.err)


@pytest.mark.parametrize(
    "words",
    [["info", "tiny"], ["size", "tiny"], ["list"], ["plugin", "list"], ["plugin", "info", "ollama"]],
    ids=" ".join,
)
def test_tables_are_aligned_and_translated(words: list[str], cli: Callable) -> None:
    ran = cli(*words)
    assert (ran.code, ran.err) == (0, "")
    for block in ran.out.strip().split("\n\n"):
        lines = [line for line in block.splitlines() if re.search(r"\S  +\S", line)]
        starts = [{output.display_width(line[: m.end()]) for m in re.finditer(r"  +(?=\S)", line)} for line in lines]
        ends = [
            {output.display_width(line[: m.start()]) for m in re.finditer(r"(?<=\S)(?=  |$)", line)} for line in lines
        ]
        # Every column begins or ends at one place in all lines.
        for i in range(1, len(lines)):
            assert (starts[0] & starts[i]) or (ends[0] & ends[i]), block
        assert CHINESE.search(block.splitlines()[0]) or CHINESE.search(block.splitlines()[1])
    shown = re.sub(r"operation [\w-]+", "", ran.out)  # kind and name of a component
    assert not ENGLISH.search(shown), shown


@pytest.mark.parametrize(
    "words", [["info", "tiny"], ["plugin", "list"], ["list"], ["info", "nothere"], ["size", "tiny"]], ids=" ".join
)
def test_json_is_the_same_in_every_language(words: list[str], cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(text: str) -> Any:
        data = json.loads(text)
        for model in data.get("models", []) if isinstance(data, dict) else []:
            model.pop("age_seconds", None)
        return data

    chinese = cli(*words, "--json")
    monkeypatch.setenv("APT_LANG", "en")
    english = cli(*words, "--json")
    assert chinese.code == english.code
    assert plain(chinese.out) == plain(english.out)


def run(*words: str, flags: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-m", "apt_model", *words]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=60, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["plugin", "list"]], ids=" ".join)
def test_ready_answers_in_chinese_cost_no_more_modules(words: list[str]) -> None:
    cold = run(*words)
    warm = run(*words, flags=("-X", "importtime"))
    assert CHINESE.search(warm.stdout)
    assert cold.stdout == warm.stdout == run(*words, APT_NO_CACHE="1").stdout
    names = {line.rpartition("|")[2].strip() for line in warm.stderr.splitlines()} - {"imported package"}
    assert not names & {"typer", "json", "apt.console.catalogue"}
    assert len(names) <= 64


def test_an_index_that_was_built_in_one_language_answers_in_the_other() -> None:
    for words in (("--help",), ("plugin", "list")):
        chinese = run(*words).stdout
        english = run(*words, APT_LANG="en").stdout
        assert not CHINESE.search(english)
        assert chinese == run(*words).stdout
        assert english == run(*words, APT_LANG="en", APT_NO_CACHE="1").stdout


def test_english_does_not_read_the_catalogue() -> None:
    run("--help", APT_LANG="en")
    for words in (("info", "tiny"), ("info", "--help"), ("info", "nothere")):
        ran = run(*words, flags=("-X", "importtime"), APT_LANG="en", LANG="zh_CN.UTF-8")
        assert "apt.console.catalogue" not in ran.stderr
        assert not CHINESE.search(ran.stdout)


def test_a_stream_without_chinese_characters_gets_english() -> None:
    for words in (("--help",), ("info", "tiny"), ("info", "--help"), ("frobnicate",)):
        ran = run(*words, PYTHONUTF8="0", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0")
        expected = run(*words, APT_LANG="en", PYTHONUTF8="0", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0")
        assert (ran.stdout, ran.stderr) == (expected.stdout, expected.stderr)


def test_the_locale_decides_where_apt_lang_is_not_set() -> None:
    assert run("frobnicate", APT_LANG="", LC_ALL="", LC_MESSAGES="", LANG="zh_CN.UTF-8").stderr.startswith("错误：")
    assert run("frobnicate", APT_LANG="", LC_ALL="C.UTF-8", LANG="zh_CN.UTF-8").stderr.startswith("error: ")
