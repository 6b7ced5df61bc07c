"""The report says what the results say, in the page, in the JSON file and in the table."""

import json
import re

import pytest
from pydantic import ValidationError

from apt.console.errors import TargetExistsError
from apt.console.output import to_json


def test_marks_equal_the_json(results, tmp_path, kit):
    _, page, data = kit.write(results, tmp_path)
    drawn = kit.Marks(page).charts
    assert list(drawn) == ["states", "training", "divergence", "agreement", "cuts", "sizes", "speed", "backups"]
    assert kit.by_place(drawn) == kit.by_place(kit.marks_of(data["charts"]))
    assert sum(map(len, drawn.values())) == 43


def test_the_json_equals_the_results(results, tmp_path, kit):
    _, _, data = kit.write(results, tmp_path)
    charts = {c["id"]: c for c in data["charts"]}
    points = {p["x"]: p for p in charts["states"]["series"][0]["points"]}
    for model in results["comparison"]["models"]:
        measured = {"y": model["perplexity"]["value"], "low": model["perplexity"]["low"]}
        assert points[model["name"]].items() >= measured.items()
    assert points["control"]["y"] == results["distillation"]["control"]["figures"]["perplexity"]["value"]
    assert points["GGUF q8_0"]["y"] == results["verifications"][1]["predictions"]["perplexity_gguf"]["value"]
    curves = [[(p["x"], p["y"]) for p in s["points"]] for s in charts["training"]["series"]]
    assert curves == [
        [(p["step"], p["eval_loss"]) for p in c["curve"]]
        for c in (results["distillation"], results["distillation"]["control"])
    ]
    heads = charts["cuts"]["series"][0]["points"]
    assert [(p["y"], p["whole"]) for p in heads] == [(8, 8), (6, 8), (0, 8), (4, 8)]
    assert heads[2]["note"] == "dropped"
    sizes = {p["x"]: p["y"] for p in charts["sizes"]["series"][0]["points"]}
    assert sizes == {
        "parent": 1_040_128, "pruned": 840_000, "recovered": 840_000, "GGUF f16": 440_000, "GGUF q8_0": 260_000,
    }  # fmt: skip
    assert [p["y"] for p in charts["backups"]["series"][0]["points"]] == [1_003_000, 420_000, 840_000]
    assert data["results"] == results["results"]
    assert [s["name"] for s in data["states"]] == [
        "parent", "pruned", "control", "recovered", "GGUF f16", "GGUF q8_0",
    ]  # fmt: skip
    assert data["states"][3]["kl"] == results["comparison"]["models"][2]["divergence"]["kl"]


def test_every_chart_has_its_figures_as_a_table(results, tmp_path, kit):
    _, page, data = kit.write(results, tmp_path)
    assert page.count("<summary>Table</summary>") == len(data["charts"])
    for text in ("41.00", "6 of 8", "0 of 8 (dropped)", "253.9 KiB", "77.2 %", "control (cross-entropy)"):
        assert text in page


def test_nothing_is_fetched_and_nothing_runs(results, tmp_path, kit):
    _, page, _ = kit.write(results, tmp_path)
    found = kit.Marks(page)
    assert found.addresses == ["data:,"]
    assert not {"script", "iframe", "object", "embed", "img", "form", "base"} & set(found.tags)
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"https?:|@import|url\(|\son\w+=", page)
    assert len(page) < 300_000


def test_hostile_names_stay_text(results, tmp_path, kit):
    results["title"] = '</title><script>alert(1)</script>"\x00 模型 & Co'
    results["comparison"]["source"] = '"><img src=x onerror=alert(2)>'
    results["comparison"]["models"][1]["name"] = '"/><script>alert(3)</script>'
    _, page, data = kit.write(results, tmp_path)
    assert "<script" not in page
    assert "<img" not in page
    assert "模型 &amp; Co" in page
    assert kit.by_place(kit.Marks(page).charts) == kit.by_place(kit.marks_of(data["charts"]))


def test_text_of_the_model_itself_is_called_agreement(results, tmp_path, kit):
    result, page, data = kit.write(results, tmp_path)
    assert data["kind"] == "agreement"
    assert "Agreement with the parent" in page
    assert "not how good a model it is" in page
    assert "eld-out perplexity" not in page
    assert result.tables()[0].columns[3] == "perplexity (agreement)"


def test_a_real_text_is_called_quality(results, tmp_path, kit):
    results["comparison"]["kind"] = "quality"
    result, page, _ = kit.write(results, tmp_path, text={"source": "embedded heldout"})
    assert "Held-out perplexity" in page
    assert "16,320 tokens of text that nothing was trained on (embedded heldout)" in page
    assert "Agreement with the parent" not in page
    assert result.tables()[0].columns[3] == "perplexity"


def test_the_table_at_the_end(results, tmp_path, kit):
    table = kit.write(results, tmp_path)[0].tables()[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["recovered"]["perplexity (agreement)"] == "4.090 [3.885, 4.295]"
    assert rows["recovered"]["× parent"] == "1.136"
    assert rows["recovered"]["decode tok/s"] == "604 [544, 634]"
    assert rows["GGUF q8_0"]["size"] == "253.9 KiB"
    assert rows["GGUF q8_0"]["decode tok/s"] == "–"
    assert rows["parent"]["KL"] == "–"


def test_all_checks_pass(results, tmp_path, kit):
    result, page, _ = kit.write(results, tmp_path)
    assert result.failed == ""
    assert len(result.checks) == 8
    assert "FAILED" not in page


FAULTS = {
    "too far": (
        ("comparison", "models", 2, "perplexity_ratio", "value"),
        1.31,
        "perplexity at most 1.3 × the parent's",
    ),
    "no better": (("comparison", "models", 2, "perplexity", "value"), 42.0, "training helped"),
    "only zeros": (("pruning", "smaller"), False, "cut as asked, truly smaller"),
    "too little cut": (("pruning", "removed_share"), 0.2, "cut as asked, truly smaller"),
    "a tensor off": (("verifications", 1, "tensors", "exact"), 29, "GGUF q8_0 verified"),
    "a tensor never compared": (("exports", 0, "tensors", "f16"), 39, "GGUF f16 verified"),
    "stored twice": (("backups", 1, "backup", "new_bytes"), 410_000 + 16_385, "version 2 stores only what changed"),
    "not the same": (("restored", "identical"), False, "restored bit for bit"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_check_is_counted_and_the_report_written(results, tmp_path, kit, name):
    place, value, check = FAULTS[name]
    target = results
    for part in place[:-1]:
        target = target[part]
    target[place[-1]] = value
    result, page, data = kit.write(results, tmp_path)
    assert result.failed == check
    assert page.count("<b>FAILED</b>") == 1
    assert [c["name"] for c in data["checks"] if not c["passed"]] == [check]


def test_other_rows_in_llama_cpp_are_not_set_beside_ours(results, tmp_path, kit):
    results["verifications"][1]["predictions"]["tokens"] = 2048
    _, _, data = kit.write(results, tmp_path)
    gguf = {s["name"]: s for s in data["states"]}["GGUF q8_0"]
    assert gguf["perplexity"] is None
    assert gguf["kl"] is not None


def test_only_a_comparison(results, tmp_path, kit):
    small = {k: results[k] for k in ("title", "comparison")}
    for model in small["comparison"]["models"]:
        model["speed"] = None
    result, page, data = kit.write(small, tmp_path)
    assert [c["id"] for c in data["charts"]] == ["states", "divergence", "agreement", "sizes"]
    assert kit.by_place(kit.Marks(page).charts) == kit.by_place(kit.marks_of(data["charts"]))
    assert len(result.checks) == 2


@pytest.mark.parametrize(
    ("ref", "name"),
    [("tiny", "tiny"), ("/some/where/stories", "stories"), ("./a/", "a"), ("hf:o/n@main", "hf:o/n@main")],
)
def test_the_title_names_the_model(results, tmp_path, kit, ref, name):
    _, page, data = kit.write(results, tmp_path, title="{model}, recovered", model=ref)
    assert data["title"] == f"{name}, recovered"
    assert f"<h1>{name}, recovered</h1>" in page


def test_the_same_results_give_the_same_files(results, tmp_path, kit):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert kit.write(results, tmp_path / "a")[1:] == kit.write(results, tmp_path / "b")[1:]


def test_an_existing_report_is_kept(results, tmp_path, kit):
    kit.write(results, tmp_path)
    with pytest.raises(TargetExistsError):
        kit.write(results, tmp_path)
    kit.write(results, tmp_path, overwrite=True)


def test_a_result_that_lacks_a_figure_is_told_by_name(results, tmp_path, kit):
    del results["comparison"]["models"][1]["size_bytes"]
    with pytest.raises(ValidationError, match=r"comparison\.models\.1\.size_bytes"):
        kit.write(results, tmp_path)


def test_the_result_is_plain_json(results, tmp_path, kit):
    result = kit.write(results, tmp_path)[0]
    assert json.loads(to_json(result))["states"][0]["perplexity"]["value"] == 3.6
