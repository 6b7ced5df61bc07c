"""``apt_model run``: plans, runs, resumes, and tells faults with file and line."""

import json

import pytest

RECIPE = """\
title: Twice sampled
inputs: {model: MODEL, rows: 4}
steps:
  - name: texts
    operation: sample-text
    with:
      model: ${inputs.model}
      output: ${out}/texts.npz
      window: 16
      calibration_rows: 2
      train_rows: 2
      heldout_rows: ${inputs.rows}
  - name: same
    operation: difference
    with: {first: "${inputs.model}", second: "${inputs.model}"}
    expect: ["identical == true"]
  - name: test
    operation: test
    with: {model: "${inputs.model}", text: "${steps.texts.path}", new_tokens: 2}
"""


@pytest.fixture
def recipe(tmp_path, llama_dir):
    path = tmp_path / "sampled.yaml"
    path.write_text(RECIPE.replace("MODEL", str(llama_dir)))
    return path


def test_run_then_unchanged_then_one_input_changed(cli, recipe, tmp_path):
    out = tmp_path / "out"
    first = cli("run", recipe, "--out", out, "--json")
    assert first.code == 0, first.err
    told = json.loads(first.out)
    assert [s["action"] for s in told["steps"]] == ["run"] * 3
    assert told["steps"][0]["result"]["heldout_rows"] == 4
    assert "[1/3] texts: sample-text (not yet run)" in first.err
    again = cli("run", recipe, "--out", out)
    assert again.code == 0
    assert "[3/3] test: unchanged" in again.err
    assert again.out.splitlines()[2].split()[:3] == ["texts", "sample-text", "unchanged"]
    assert "llama: passed" in again.out
    changed = json.loads(cli("run", recipe, "--out", out, "--set", "rows=5", "--json", "--quiet").out)
    assert [s["action"] for s in changed["steps"]] == ["run", "cached", "run"]


def test_dry_run_writes_nothing_and_force_runs_all(cli, recipe, tmp_path):
    out = tmp_path / "out"
    plan = cli("run", recipe, "--out", out, "--dry-run", "--json")
    assert plan.code == 0
    assert [s["action"] for s in json.loads(plan.out)["steps"]] == ["run"] * 3
    assert not out.exists()
    assert cli("run", recipe, "--out", out).code == 0
    plan = cli("run", recipe, "--out", out, "--dry-run")
    assert plan.out.count("cached") == 3
    assert cli("run", recipe, "--out", out, "--dry-run", "--force").out.count("forced") == 3


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("heldout_rows", "heldout_row", 2, "sampled.yaml:12: unknown option 'heldout_row'"),
        ("operation: test", "operation: tset", 2, "sampled.yaml:18: unknown operation 'tset' (did you mean 'test'?)"),
        ("window: 16", "window: wide", 2, "sampled.yaml:9: option 'window' of step 'texts': 'wide' should be a valid"),
        ("texts.path", "texts.paht", 2, "sampled.yaml:19: TextResult has no field 'paht' (did you mean 'path'?"),
        ("first: \"${inputs.model}\"", "first: nothing", 3, "no model 'nothing'"),
        ("identical == true", "identical == false", 10, "step 'same': expected identical == False, but it is True"),
    ],
)  # fmt: skip
def test_faults(cli, recipe, tmp_path, old, new, code, message):
    recipe.write_text(recipe.read_text().replace(old, new))
    ran = cli("run", recipe, "--out", tmp_path / "out")
    assert ran.code == code
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert ("same" in ran.out) == (code == 10)  # what was found is shown also when it is not enough
    assert (tmp_path / "out").exists() == (code == 10)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("run", "quikstart"), 3, "did you mean 'quickstart'?"),
        (("run", "nothing.yaml"), 3, "no recipe 'nothing.yaml'"),
        (("run", "RECIPE", "--set", "rows"), 2, "--set 'rows' is not INPUT=VALUE"),
        (("run", "RECIPE", "--set", "row=1"), 2, "has no input 'row' (did you mean 'rows'?)"),
        (("run", "RECIPE", "--set", "rows=few"), 2, "must be a whole number, not 'few'"),
        (("run", "RECIPE", "--set", "rows=1", "--set", "rows=2"), 2, "--set rows is given twice"),
        (("run",), 2, "Missing argument"),
    ],
)
def test_wrong_calls(cli, recipe, tmp_path, words, code, message):
    ran = cli(*[recipe if w == "RECIPE" else w for w in words])
    assert ran.code == code
    assert message in ran.err


def test_the_default_output_is_named_after_the_recipe(cli, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("run", recipe).code == 0
    assert (tmp_path / "sampled" / "texts.npz").exists()
