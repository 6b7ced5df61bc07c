"""Results as the operations give them, with figures that are easy to tell apart."""

import copy
import html.parser
import json
from types import SimpleNamespace

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
