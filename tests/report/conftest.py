"""Results as the operations give them, with figures that are easy to tell apart."""

import base64
import copy
import fcntl
import html.parser
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apt.report.operation import ReportOptions, report


def estimate(value: float, spread: float = 0.05) -> dict:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def rate(value: float) -> dict:
    return {"tokens_per_second": value, "low": value * 0.9, "high": value * 1.05}


def compared(
    name: str, parameters: int, perplexity: float, ratio: float | None, kl: float | None, speed: float
) -> dict:
    distance = None if kl is None else {"kl": estimate(kl), "agreement": estimate(0.9 - kl, 0.01), "tokens": 16320}
    return {
        "name": name, "path": f"/out/{name}", "parameters": parameters, "size_bytes": parameters * 4,
        "size_ratio": 1.0, "memory_bytes": parameters * 4, "perplexity": estimate(perplexity), "bits_per_byte": None,
        "perplexity_ratio": None if ratio is None else estimate(ratio, 0.01),
        "divergence": distance,
        "speed": {"prefill": rate(speed * 9), "decode": rate(speed), "threads": 2, "dtype": "float32"},
    }  # fmt: skip


def layer(number: int, place: int | None, heads: int, ff: int) -> dict:
    return {
        "layer": number, "place": place, "heads_before": 8, "heads_after": heads, "kv_groups_before": 4,
        "kv_groups_after": heads // 2, "ff_before": 172, "ff_after": ff, "removed_share": 0.1,
    }  # fmt: skip


def curve(start: float, end: float) -> list[dict]:
    return [
        {"step": s, "tokens": s * 2048, "train_loss": 1.0 if s else None, "eval_loss": start + (end - start) * s / 150}
        for s in (0, 50, 100, 150)
    ]


def verification(kind: str, kl: float) -> dict:
    exact = 47 if kind == "f16" else 30
    return {
        "type": kind, "tensors": {"tensors": 47, "exact": exact, "bounded": 47 - exact},
        "llama_cpp": "run", "greedy": {"prompts": 16, "compared": 1000, "ended_early": 1} if kind == "f16" else None,
        "predictions": {
            "tokens": 16320, "kl": estimate(kl), "agreement": estimate(0.99, 0.001),
            "perplexity_gguf": estimate(4.1), "perplexity_change": 0.001,
        },
    }  # fmt: skip


def backup(version: int, new_bytes: int, stored: int) -> dict:
    return {
        "name": "model", "version": version, "size_bytes": 1_000_000, "new_bytes": new_bytes,
        "tensors_total": 47, "tensors_stored": stored,
    }  # fmt: skip


def difference(changed_bytes: int, tensors: int, identical: bool = False) -> dict:
    return {"identical": identical, "tensors": 47, "changed_tensors": tensors, "changed_bytes": changed_bytes}


RESULTS = {
    "title": "stories, pruned & recovered <模型>",
    "comparison": {
        "source": "sampled from stories", "kind": "agreement", "tokens": 16320, "rows": 64,
        "models": [
            compared("parent", 260_032, 3.6, None, None, 520.0),
            compared("pruned", 210_000, 41.0, 11.4, 0.8, 610.0),
            compared("recovered", 210_000, 4.09, 1.136, 0.12, 604.0),
        ],
    },
    "pruning": {
        "asked_ratio": 0.25, "removed_share": 0.2513, "smaller": True, "plan": "heads and channels",
        "layers": [layer(0, 0, 8, 172), layer(1, 1, 6, 120), layer(2, None, 8, 172), layer(3, 2, 4, 88)],
    },
    "distillation": {
        "steps": 150, "best_step": 150, "heldout_tokens": 16320, "curve": curve(3.7, 1.41),
        "control": {
            "figures": {"perplexity": estimate(4.6), "kl": estimate(0.22), "agreement": estimate(0.7, 0.01)},
            "curve": curve(3.7, 1.55),
        },
    },
    "exports": [
        {"type": "f16", "tensors": {"f16": 38, "f32": 9}, "size_bytes": 440_000, "parameters": 210_000},
        {"type": "q8_0", "tensors": {"q8_0": 38, "f32": 9}, "size_bytes": 260_000, "parameters": 210_000},
    ],
    "verifications": [verification("f16", 1e-6), verification("q8_0", 7e-4)],
    "backups": [
        {"backup": backup(1, 1_003_000, 47)},
        {"backup": backup(2, 420_000, 30), "difference": difference(410_000, 30)},
        {"backup": backup(3, 840_000, 47), "difference": difference(836_000, 47)},
    ],
    "restored": difference(0, 0, identical=True),
    "results": {"import": {"parameters": 260_032}},
}  # fmt: skip


@pytest.fixture
def results() -> dict:
    return copy.deepcopy(RESULTS)


def write(results, tmp_path, **changes):
    results = {**results, "html": str(tmp_path / "report.html"), "data": str(tmp_path / "report.json"), **changes}
    result = report(ReportOptions.model_validate_json(json.dumps(results), strict=True))
    return result, (tmp_path / "report.html").read_text(), json.loads((tmp_path / "report.json").read_text())


class Marks(html.parser.HTMLParser):
    """Collects the marks of every chart, and every attribute that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: dict[str, list[dict[str, str]]] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[k] for k in ("href", "src", "srcset", "action", "data", "poster") if k in values]
        if "data-chart" in values:
            self.charts[values["data-chart"]] = []
        if "data-series" in values:
            mark = {k.removeprefix("data-"): v for k, v in values.items() if k.startswith("data-")}
            list(self.charts.values())[-1].append(mark)


def marks_of(charts):
    """The marks that a report.json asks for."""
    return {
        chart["id"]: [
            {
                "series": s["name"],
                **{k: v if isinstance(v, str) else repr(float(v)) for k, v in p.items() if k != "note"},
            }
            for s in chart["series"]
            for p in s["points"]
        ]
        for chart in charts
    }


def by_place(charts):
    return {k: sorted(v, key=lambda m: (m["series"], m["x"])) for k, v in charts.items()}


@pytest.fixture
def kit() -> SimpleNamespace:
    """Writing a report and reading its marks."""
    return SimpleNamespace(write=write, Marks=Marks, marks_of=marks_of, by_place=by_place)


CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


class Browser:
    """Chromium with one page; remembers what the page requested and what was said on its console.

    It is driven through its debugging pipe, which needs no library and no port.
    """

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
    """A browser of the test's own; without one the test is skipped."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    made = Browser(tmp_path / "profile")
    yield made
    made.close()
