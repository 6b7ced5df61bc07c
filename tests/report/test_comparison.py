"""The page of a comparison: every figure of the result, names escaped, nothing loaded."""

import html.parser
from dataclasses import replace
from pathlib import Path

import pytest

from apt.console.errors import TargetExistsError
from apt.evaluation.paired import paired_test
from apt.evaluation.results import ComparedModel, CompareResult, FigureTest
from apt.evaluation.scoring import Divergence
from apt.evaluation.statistics import Estimate
from apt.report.comparison import write_comparison

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


def test_a_page_is_not_overwritten_unasked(result: CompareResult, tmp_path: Path) -> None:
    write_comparison(result, tmp_path / "p.html")
    with pytest.raises(TargetExistsError):
        write_comparison(result, tmp_path / "p.html")
    before = (tmp_path / "p.html").read_bytes()
    write_comparison(replace(result, tokens=101), tmp_path / "p.html", overwrite=True)
    assert (tmp_path / "p.html").read_bytes() != before
