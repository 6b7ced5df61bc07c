"""The page in a real browser: nothing is requested, nothing complains, every mark is where its figure says."""

import json
from pathlib import Path

import pytest

MEASURE = """(() => JSON.stringify({
  sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  charts: [...document.querySelectorAll('svg.chart')].map(svg => {
    const frame = svg.getBoundingClientRect();
    const outside = [...svg.querySelectorAll('text, .mark')].filter(e => {
      const b = e.getBoundingClientRect();
      return b.left < frame.left - 1 || b.right > frame.right + 1
          || b.top < frame.top - 1 || b.bottom > frame.bottom + 1;
    });
    return {
      id: svg.dataset.chart,
      outside: outside.map(e => e.textContent),
      marks: [...svg.querySelectorAll('.mark')].map(m => {
        const box = m.querySelector('rect:not(.whole), circle, path:not(.whisker)').getBoundingClientRect();
        return {...m.dataset, width: box.width, middle: box.left + box.width / 2, height: box.top + box.height / 2};
      }),
    };
  }),
}))()"""


@pytest.fixture
def page(results, tmp_path, kit) -> Path:
    kit.write(results, tmp_path)
    return tmp_path / "report.html"


def test_the_page_requests_nothing_and_complains_of_nothing(page, browser):
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert [u for u in browser.requests if not u.startswith("data:")] == [page.as_uri()]
    assert browser.console == []


def test_a_page_that_does_would_be_caught(tmp_path, browser):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://example.invalid/a.png"><script>console.error("told")</script>')
    browser.open(bad)
    assert "http://example.invalid/a.png" in browser.requests
    assert any("told" in line for line in browser.console)


def test_marks_in_the_browser_equal_the_json(page, tmp_path, browser, kit):
    browser.open(page)
    drawn = kit.Marks(browser.evaluate("document.documentElement.outerHTML")).charts
    data = json.loads((tmp_path / "report.json").read_text())
    assert kit.by_place(drawn) == kit.by_place(kit.marks_of(data["charts"]))


@pytest.mark.parametrize("width", [1280, 820, 375])
def test_marks_are_drawn_to_scale_and_stay_inside(page, browser, width):
    browser.open(page, width)
    found = json.loads(browser.evaluate(MEASURE))
    assert found["sideways"] <= 0
    assert {c["id"]: c["outside"] for c in found["charts"] if c["outside"]} == {}
    charts = {c["id"]: c["marks"] for c in found["charts"]}
    for name in ("sizes", "speed", "backups"):  # bars are as long as their figures are large
        scales = [m["width"] / float(m["y"]) for m in charts[name]]
        assert max(scales) == pytest.approx(min(scales), rel=0.01)
    for mark in charts["cuts"]:  # cells are filled as far as is left
        whole = max(m["width"] / (float(m["y"]) / float(m["whole"])) for m in charts["cuts"] if float(m["y"]))
        assert mark["width"] == pytest.approx(whole * float(mark["y"]) / float(mark["whole"]), abs=1)
    agreement = sorted(charts["agreement"], key=lambda m: float(m["y"]))  # dots lie on one straight scale
    (x0, y0), (x1, y1), (x2, y2) = [(m["middle"], float(m["y"])) for m in agreement]
    assert (x1 - x0) / (y1 - y0) == pytest.approx((x2 - x0) / (y2 - y0), rel=0.02)
    curve = charts["training"]  # the lower the loss, the lower the mark
    by_loss = sorted(curve, key=lambda m: float(m["y"]))
    assert by_loss[0]["height"] > by_loss[-1]["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes(page, tmp_path, browser, scheme):
    browser.open(page, scheme=scheme)
    back, ink = (
        browser.evaluate(f"getComputedStyle(document.body).{p}").removeprefix("rgb(").rstrip(")").split(", ")
        for p in ("backgroundColor", "color")
    )
    brightness = [sum(map(int, c)) for c in (back, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert abs(brightness[0] - brightness[1]) > 450
    assert browser.screenshot(tmp_path / "page.png").stat().st_size > 100_000
