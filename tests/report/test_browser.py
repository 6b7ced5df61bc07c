"""The page in a real browser: nothing is requested, nothing complains, every mark is where its figure says.

The browser is driven through its debugging pipe, which needs no library and no port.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

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


class Browser:
    """Chromium with one page; remembers what the page requested and what was said on its console."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (ours[0], theirs[1])]
        self._process = subprocess.Popen(
            [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
                "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(fds[0], 3), os.dup2(fds[1], 4)),
        )  # fmt: skip
        for fd in (*fds, ours[0], theirs[1]):
            os.close(fd)
        self._write, self._read = ours[1], os.fdopen(theirs[0], "rb")
        self._buffer, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.call(f"{domain}.enable")

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        """Load a page at a width and in a colour scheme."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> Path:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = self._read.read1(1 << 16)
            assert piece, "the browser has gone"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.console.append(json.dumps(params))
        return message

    def close(self) -> None:
        os.close(self._write)
        self._read.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


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
