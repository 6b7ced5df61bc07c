"""``visualize``: every figure drawn is the figure of its source, in both languages, and nothing is requested."""

import ast
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from apt.console.errors import BadInputError, MissingDependencyError, NotFoundError, TargetExistsError, UsageError
from apt.report import language as languages
from apt.report.visualize import Visualization, visualize

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def points(drawn: Visualization, chart: str, series: int = 0) -> dict[Any, float]:
    found = next(c for c in drawn.charts if c["id"] == chart)
    return {p["x"]: p["y"] for p in found["series"][series]["points"]}


def comparison() -> dict[str, Any]:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value * 0.9, "high": value * 1.1}

    def model(name: str, perplexity: float, kl: float | None) -> dict[str, Any]:
        rate = {"tokens_per_second": perplexity * 10, "low": perplexity * 9, "high": perplexity * 11}
        return {
            "name": name, "parameters": 1000, "size_bytes": 4000, "perplexity": estimate(perplexity),
            "perplexity_ratio": None, "bits_per_byte": estimate(perplexity / 5),
            "divergence": kl and {"kl": estimate(kl), "agreement": estimate(0.9)},
            "speed": {"prefill": rate, "decode": rate, "threads": 1},
        }  # fmt: skip

    models = [
        model("a-model-with-a-rather-long-name", 3.5, None),
        model("损坏的模型🙂", 4.25, 0.001),
        model("c", 9, 0.4),
    ]
    return {"source": "held out", "kind": "quality", "tokens": 4096, "models": models}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APT_LANG", raising=False)
    return tmp_path


def test_a_model(here: Path, new_llama: Callable[..., Path]) -> None:
    path = new_llama(here / "模型")
    drawn = visualize(str(path))
    assert drawn.path == Path("模型.html") and drawn.subject == "model" and drawn.path.is_file()
    tensors = load_file(path / "model.safetensors")
    down = [tensors[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(3)]
    assert list(points(drawn, "mlp-largest", 2).values()) == [float(t.abs().max()) for t in down]
    assert list(points(drawn, "mlp-rms", 2).values()) == pytest.approx([float(t.square().mean().sqrt()) for t in down])
    total = [float(t.square().sum()) for t in down]
    spectral = [float(t.svd().S[0].square()) for t in down]
    shares = [t / s / 32 for t, s in zip(total, spectral, strict=True)]
    assert list(points(drawn, "mlp-rank", 2).values()) == pytest.approx(shares, rel=0.05)
    assert sum(points(drawn, "components").values()) == sum(t.numel() for t in tensors.values())
    assert points(drawn, "dtypes") == {"F32": sum(t.numel() for t in tensors.values())}
    outliers = list(points(drawn, "outliers").values())
    assert outliers == sorted(outliers, reverse=True) and len(outliers) == 10


def test_a_family_without_descriptor_and_a_gguf(here: Path, new_llama: Callable[..., Path]) -> None:
    path = new_llama(here / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "newfangled"}))
    assert [c["id"] for c in visualize(str(path)).charts] == ["dtypes", "outliers"]
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(here / "m.gguf", "llama")
    import numpy as np

    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    drawn = visualize("m.gguf", output=Path("g.html"))
    assert points(drawn, "dtypes") == {"F32": 128}


def test_a_run_by_trainer_state_lines_and_records(here: Path) -> None:
    history = [
        {"step": 10, "loss": 3.0, "learning_rate": 1e-4, "grad_norm": 2.0},
        {"step": 10, "eval_loss": 3.1},
        {"step": 20, "loss": float("nan"), "learning_rate": 5e-5, "grad_norm": 1.0},
        {"step": 20, "eval_loss": 2.5},
    ]
    for step in (10, 20):
        (here / f"run/checkpoint-{step}").mkdir(parents=True)
        state = {"log_history": history[: step // 5], "global_step": step}
        (here / f"run/checkpoint-{step}/trainer_state.json").write_text(json.dumps(state))
    drawn = visualize("run")
    assert drawn.subject == "run" and [c["id"] for c in drawn.charts] == ["run-loss", "run-lr", "run-grad"]
    assert points(drawn, "run-loss") == {10.0: 3.0}  # NaN is no point
    assert points(drawn, "run-loss", 1) == {10.0: 3.1, 20.0: 2.5}
    assert points(drawn, "run-lr") == {10.0: 1e-4, 20.0: 5e-5}
    lines = "\n".join(json.dumps({"step": i, "train_loss": 5 / (i + 1)}) for i in range(1000))
    (here / "run" / "log.jsonl").write_text(lines + "\nnot json\n[1]\n")
    drawn = visualize("run", overwrite=True)
    (loss,) = [c for c in drawn.charts if c["id"] == "run-loss"]
    assert {s["name"] for s in loss["series"]} == {
        "checkpoint-20/trainer_state.json: training",
        "checkpoint-20/trainer_state.json: held out",
        "log.jsonl: training",
    }
    thinned = loss["series"][2]["points"]
    assert len(thinned) <= 241 and thinned[-1] == {"x": 999.0, "y": 5 / 1000}
    (here / "recipe/.apt/steps").mkdir(parents=True)
    curve = [{"step": 0, "train_loss": None, "eval_loss": 4.0}, {"step": 5, "train_loss": 3.5, "eval_loss": 3.0}]
    (here / "recipe/.apt/steps/distill.json").write_text(json.dumps({"format": 1, "result": {"curve": curve}}))
    assert points(visualize("recipe"), "run-loss", 1) == {0.0: 4.0, 5.0: 3.0}


def test_a_comparison_and_a_report(here: Path, results: Any, kit: Any) -> None:
    (here / "ab.json").write_text(json.dumps(comparison()), encoding="utf-8")
    drawn = visualize("ab.json")
    assert drawn.subject == "comparison"
    assert points(drawn, "perplexity") == {m["name"]: m["perplexity"]["value"] for m in comparison()["models"]}
    assert points(drawn, "divergence") == {"损坏的模型🙂": 0.001, "c": 0.4}
    _, _, data = kit.write(results, here)
    again = visualize("report.json", output=Path("again.html"))
    assert again.subject == "report" and list(again.charts) == data["charts"]


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
@pytest.mark.parametrize("subject", ["model", "run", "comparison"])
def test_the_page_in_a_browser(
    subject: str, lang: str, here: Path, new_llama: Callable[..., Path], browser: Any, kit: Any
) -> None:
    if subject == "model":
        target = str(new_llama(here / "m", num_hidden_layers=5))
    elif subject == "run":
        history = [{"step": i, "loss": 4 - i / 100, "eval_loss": 4.1 - i / 90} for i in range(0, 200, 20)]
        target = "state.json"
        (here / target).write_text(json.dumps({"log_history": history}))
    else:
        target = "ab.json"
        (here / target).write_text(json.dumps(comparison()), encoding="utf-8")
    drawn = visualize(target, output=here / "page.html", lang=lang)
    for width in (1280, 390):
        browser.open(here / "page.html", width)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert [u for u in browser.requests if not u.startswith("data:")] == [(here / "page.html").as_uri()] * 2
    assert browser.console == []
    found = kit.Marks(browser.evaluate("document.documentElement.outerHTML")).charts
    assert kit.by_place(found) == kit.by_place(kit.marks_of(drawn.charts))
    assert browser.evaluate("document.documentElement.lang") == lang
    headings = browser.evaluate("[...document.querySelectorAll('h2, h3, summary, .lead')].map(e => e.textContent)")
    assert all(bool(CHINESE.search(h)) == (lang == "zh-CN") for h in headings), headings
    outside = browser.evaluate(
        "[...document.querySelectorAll('svg.chart')].flatMap(svg => {const f = svg.getBoundingClientRect();"
        "return [...svg.querySelectorAll('text')].filter(t => {const b = t.getBoundingClientRect();"
        "return b.left < f.left - 1 || b.right > f.right + 1}).map(t => t.textContent)})"
    )
    assert outside == []


def test_every_phrase_of_a_chinese_page_is_chinese() -> None:
    words = languages.translator("zh-CN")
    phrases = set()
    for file in Path(languages.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("w", "words", "sheet.words"):
                phrases |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    assert len(phrases) > 40 and [p for p in phrases if not CHINESE.search(words(p))] == []
    assert languages.translator("en")("Table") == "Table"


def test_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APT_LANG", raising=False)
    assert languages.language(None) == "en" and languages.language("zh") == "zh-CN"
    monkeypatch.setenv("APT_LANG", "zh_CN.UTF-8")
    assert languages.language(None) == "zh-CN" and languages.language("en") == "en"
    with pytest.raises(UsageError, match="tlh"):
        languages.language("tlh")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("{}", "neither a report"),
        ('{"charts": 3}', "not a list"),
        ('{"charts": [{"kind": "pies"}]}', r"charts\[0\]: not a chart"),
        (
            '{"charts": [{"id": "a", "title": "t", "kind": "bars", "series": [{"name": "s", "points": [{"x": 1}]}]}]}',
            "validation error",
        ),
        ('{"models": [{"name": "a"}]}', "source: Field required"),
        ('{"curve": 5}', "not a list"),
        ('{"curve": []}', "no figure"),
    ],
)
def test_bad_json_is_told(here: Path, content: str, told: str) -> None:
    (here / "x.json").write_text(content)
    with pytest.raises(BadInputError, match=told):
        visualize("x.json")
    assert not (here / "x.html").exists()


def test_bad_targets_and_outputs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError):
        visualize("./nowhere")
    (here / "empty").mkdir()
    with pytest.raises(BadInputError, match="neither a model nor a training run"):
        visualize("./empty")
    (here / "ab.json").write_text(json.dumps(comparison()))
    visualize("ab.json")
    before = (here / "ab.html").read_bytes()
    with pytest.raises(TargetExistsError):
        visualize("ab.json")
    with pytest.raises(UsageError, match="is a directory"):
        visualize("ab.json", output=here / "empty")
    visualize("ab.json", overwrite=True)
    assert (here / "ab.html").read_bytes() == before
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        visualize("ab.json", png=True)
    assert not (here / "ab.png").exists()


def test_a_picture(here: Path) -> None:
    pytest.importorskip("matplotlib")
    (here / "ab.json").write_text(json.dumps(comparison()), encoding="utf-8")
    drawn = visualize("ab.json", output=here / "ab.png", lang="zh-CN")
    assert drawn.format == "png" and (here / "ab.png").read_bytes().startswith(b"\x89PNG")
