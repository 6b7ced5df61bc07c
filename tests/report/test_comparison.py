"""The page of a comparison: every figure of the result, names escaped, nothing loaded."""

import html.parser
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import TargetExistsError
from apt.evaluation.paired import paired_test
from apt.evaluation.results import ComparedModel, CompareResult, FigureTest
from apt.evaluation.scoring import Divergence
from apt.evaluation.statistics import Estimate
from apt.evaluation.task_scoring import TaskMetric, TaskScore
from apt.report.comparison import write_comparison

CHINESE = re.compile(r"[\u4e00-\u9fff]")
NAMES = ("原模型 <b>&", "a-very-long-name-of-a-model-one", "a-very-long-name-of-a-model-one (2)")


def model(name: str, perplexity: float) -> ComparedModel:
    estimate = Estimate(perplexity, perplexity - 0.125, perplexity + 0.125)
    distance = None if name == NAMES[0] else Divergence(Estimate(0.0625, 0.05, 0.07), Estimate(0.875, 0.8, 0.9), 100)
    return ComparedModel(
        name=name, path=Path("/m"), runtime="transformers, float32", parameters=10, size_bytes=4096, size_ratio=1.0,
        memory_bytes=4096, perplexity=estimate, bits_per_byte=None,
        perplexity_ratio=None if distance is None else estimate, divergence=distance, speed=None,
    )  # fmt: skip


@pytest.fixture
def result() -> CompareResult:
    test = FigureTest(NAMES[1], "perplexity", "nats per token", False, paired_test([1.0, 2.0, 3.0], [1.5, 2.5, 3.75]))
    models = tuple(model(n, 3.5 + i) for i, n in enumerate(NAMES))
    return CompareResult('text "x"><script>', "quality", 100, 10, models, (test,))


class _Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_every_figure_and_loads_nothing(result: CompareResult, tmp_path: Path) -> None:
    path = tmp_path / "页.html"
    write_comparison(result, path)
    page = _Reader()
    page.feed(path.read_text(encoding="utf-8"))
    assert not {"script", "b"} & {t for t, _ in page.tags if t == "script"} and "<b>&" in page.text
    assert not [a for _, attrs in page.tags for a in ("src", "href") if (attrs.get(a) or "").startswith(("http", "//"))]
    marks = [a for t, a in page.tags if t == "g" and a.get("data-series") == "Perplexity"]
    assert [float(a["data-y"] or "") for a in marks] == [m.perplexity.value for m in result.models if m.perplexity]
    assert len({a["data-x"] for a in marks}) == 3  # names that are cut are still different
    for table in result.tables():
        for row in table.rows:
            for cell in row:
                assert cell.partition(" [")[0] in page.text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_the_page_in_a_browser(
    result: CompareResult, tmp_path: Path, lang: str, browser: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_LANG", lang)
    path = tmp_path / "page.html"
    write_comparison(result, path)
    for width in (1280, 390):
        browser.open(path, width)
        assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert [u for u in browser.requests if not u.startswith("data:")] == [path.as_uri()] * 2 and browser.console == []
    drawn = kit.Marks(browser.evaluate("document.documentElement.outerHTML")).charts
    assert [float(m["y"]) for m in drawn["perplexity"]] == [m.perplexity.value for m in result.models if m.perplexity]
    assert [float(m["y"]) for m in drawn["divergence"]] == [0.0625, 0.0625]
    headings = browser.evaluate("[...document.querySelectorAll('h2, h3, summary, .lead')].map(e => e.textContent)")
    assert all(bool(CHINESE.search(h)) == (lang == "zh-CN") for h in headings), headings


def test_agreement_is_not_called_quality_and_tasks_have_charts(result: CompareResult, tmp_path: Path) -> None:
    right = TaskMetric("accuracy", Estimate(0.5, 0.25, 0.75), 0.1, True, (0.0, 1.0))
    score = TaskScore("问题", "multiple_choice", 2, 2, 0.25, "x", (right,))
    models = tuple(replace(m, tasks=(score,)) for m in result.models)
    write_comparison(replace(result, kind="agreement", models=models), tmp_path / "p.html")
    page = _Reader()
    page.feed((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "Agreement with the first: perplexity" in page.text and "问题: accuracy" in page.text
    assert [a["data-y"] for _, a in page.tags if a.get("data-series") == "accuracy"] == ["0.5"] * 3


def test_a_page_is_not_overwritten_unasked(result: CompareResult, tmp_path: Path) -> None:
    write_comparison(result, tmp_path / "p.html")
    with pytest.raises(TargetExistsError):
        write_comparison(result, tmp_path / "p.html")
    before = (tmp_path / "p.html").read_bytes()
    write_comparison(replace(result, tokens=101), tmp_path / "p.html", overwrite=True)
    assert (tmp_path / "p.html").read_bytes() != before
