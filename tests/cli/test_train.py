"""``apt_model train``: plans, refusals before any weight is read, a run, and one that was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from apt.training import catalog

ROOT = Path(__file__).parents[2]

CONFIG = """\
data:
  train:
    name: text
    path: TEXT
    window: 24
    max_rows: 24
train:
  loss:
    name: ce
  optimizer:
    name: adamw
    lr: 3.0e-3
  steps: 6
  batch_rows: 2
  eval_every: 3
  eval_rows: 6
  precision: fp32
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small run without a model."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} apples and {n * 7 % 23} pears. 你好，世界。\n" for n in range(60)), encoding="utf-8")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("TEXT", str(text)), encoding="utf-8")
    return path


def edited(config: Path, old: str, new: str, name: str = "edited.yaml") -> Path:
    text = config.read_text(encoding="utf-8")
    assert old in text
    path = config.with_name(name)
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def files_below(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


def test_a_run_leaves_a_stock_checkpoint_its_config_and_its_figures(
    cli: Callable, config: Path, new_llama: Callable, tmp_path: Path
) -> None:
    model, out = new_llama(tmp_path / "model", dtype="bfloat16"), tmp_path / "out"
    ran = cli("train", "--config", config, "--model", model, "-o", out, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["after"]["value"] < report["before"]["value"]
    assert report["after"]["low"] < report["after"]["value"] < report["after"]["high"]
    assert report["ratio"]["high"] < 1
    assert [p["step"] for p in report["curve"]] == [0, 3, 6]
    weights = load_file(out / "model.safetensors")
    assert {str(t.dtype) for t in weights.values()} == {"torch.bfloat16"}
    lineage = json.loads((out / "apt.json").read_text(encoding="utf-8"))
    assert lineage["operation"] == "train" and lineage["parent"]["name"] == "model"
    assert lineage["metrics"]["after"] == report["after"]
    options = lineage["options"]
    assert options["config_sha256"] == report["config_sha256"]
    assert {"torch", "transformers"} <= set(options["packages"]) and "git" in options
    assert not (tmp_path / ".out.run").exists()
    again = cli("train", "--config", out / "training.yaml", "-o", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["config_sha256"] == report["config_sha256"]
    repeated = load_file(tmp_path / "again" / "model.safetensors")
    assert all(bool((repeated[name] == weights[name]).all()) for name in weights)


def test_figures_are_those_of_what_was_written(
    cli: Callable, config: Path, new_llama: Callable, tmp_path: Path
) -> None:
    model, out = new_llama(tmp_path / "model", dtype="bfloat16"), tmp_path / "out"
    ruin = edited(config, "lr: 3.0e-3", "lr: 9.0")
    ran = cli("train", "--config", ruin, "--model", model, "-o", out, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["best_step"] == 0
    assert report["after"] == report["before"] and report["ratio"]["value"] == 1.0
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(bool((after[name] == before[name]).all()) for name in before)


def test_a_teacher_teaches(cli: Callable, config: Path, new_llama: Callable, tmp_path: Path) -> None:
    model, teacher = new_llama(tmp_path / "model"), new_llama(tmp_path / "teacher", seed=1)
    distill = edited(config, "name: ce", "name: distill")
    words = ("train", "--config", distill, "--model", model, "-o", tmp_path / "out")
    refused = cli(*words)
    assert refused.code == 2 and "needs a teacher" in refused.err
    ran = cli(*words, "--teacher", teacher, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["teacher"] == str(teacher) and report["metrics"]["kd/kl_token"] > 0
    held = json.loads((tmp_path / "out" / "apt.json").read_text(encoding="utf-8"))["options"]
    assert held["teacher"]["name"] == "teacher"
    assert yaml.safe_load((tmp_path / "out" / "training.yaml").read_text(encoding="utf-8"))["teacher"] == str(teacher)


def test_a_plan_writes_and_loads_nothing(
    cli: Callable, config: Path, llama_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    from apt.checkpoint.reader import Checkpoint

    monkeypatch.setattr(Checkpoint, "load", lambda *a, **k: pytest.fail("weights were read"))
    before = files_below(tmp_path)
    ran = cli("train", "--config", config, "--model", llama_dir, "-o", tmp_path / "out", "--dry-run")
    assert ran.code == 0, ran.err
    assert "train.steps" in ran.out and "max_grad_norm" in ran.out
    told = json.loads(
        cli("train", "--config", config, "--model", llama_dir, "-o", tmp_path / "out", "--dry-run", "--json").out
    )
    assert told["rows_per_step"] == 2 and told["config"]["train"]["optimizer"]["beta2"] == 0.95
    assert files_below(tmp_path) - before <= {"apt-home", "cache"}


def test_what_cannot_be_done_is_refused_before_weights_are_read(
    cli: Callable, config: Path, llama_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    from apt.checkpoint.reader import Checkpoint

    monkeypatch.setattr(Checkpoint, "load", lambda *a, **k: pytest.fail("weights were read"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    base = ("train", "--model", llama_dir)
    for words, code, told in (
        (("--config", tmp_path / "nowhere.yaml", "-o", "out"), 3, "neither a file nor shipped"),
        (("--config", config, "-o", tmp_path / "full"), 7, "exists already"),
        (("--config", config, "-o", tmp_path / "out", "--run-dir", tmp_path / "full"), 2, "something else than a run"),
        (("--config", config, "-o", tmp_path / "out", "--allow-change", "train.step"), 2, "did you mean 'train.steps'"),
        (
            ("--config", edited(config, "steps: 6", "stepz: 6"), "-o", "out"),
            2,
            ":13: train.stepz: unknown key (did you mean 'steps'?)",
        ),
        (("--config", config, "-o", tmp_path / "out", "--model", tmp_path / "no-model"), 3, "no"),
        (("--config", config, "-o", tmp_path / "out", "--teacher", tmp_path / "no-model"), 2, "nothing in it learns"),
    ):
        ran = cli(*base, *words)
        assert ran.code == code, ran.err
        assert told in ran.err
        assert len(ran.err.strip().splitlines()) == 1 and ran.out == ""
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_no_flag_or_variable_overrides_a_setting(cli: Callable, config: Path, llama_dir: Path, tmp_path: Path) -> None:
    from apt.training.config import TrainSection

    for name in TrainSection.model_fields:
        ran = cli(
            "train", "--config", config, "--model", llama_dir, "-o", tmp_path / "o", f"--{name.replace('_', '-')}", "1"
        )
        assert ran.code == 2 and "No such option" in ran.err, name


CHILD = """
import sys
from apt.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def _kill_after_a_state(words: list[str], run_dir: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, *words], env=environment)
    deadline = time.monotonic() + 200
    while not list(run_dir.glob("checkpoint-*/digests.json")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_a_killed_run_goes_on_to_the_same_weights(
    cli: Callable, config: Path, new_llama: Callable, tmp_path: Path
) -> None:
    model = new_llama(tmp_path / "model", attention_dropout=0.1)
    long = edited(config, "steps: 6", "steps: 120", "long.yaml")
    out = tmp_path / "killed"
    words = ["train", "--config", str(long), "--model", str(model)]
    _kill_after_a_state([*words, "-o", str(out)], tmp_path / ".killed.run")
    assert not out.exists()
    changed = edited(long, "seed" if "seed" in long.read_text() else "batch_rows: 2", "batch_rows: 3", "changed.yaml")
    refused = cli("train", "--config", changed, "--model", model, "-o", out)
    assert refused.code == 2 and "train.batch_rows" in refused.err
    ran = cli(*words, "-o", out, "--json")
    assert ran.code == 0, ran.err
    whole = cli(*words, "-o", tmp_path / "whole", "--json")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert [p["eval_loss"] for p in json.loads(ran.out)["curve"]] == [
        p["eval_loss"] for p in json.loads(whole.out)["curve"]
    ]
    assert not (tmp_path / ".killed.run").exists()


def test_a_run_may_be_made_longer_where_that_is_allowed(
    cli: Callable, config: Path, llama_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "state"
    base = ("train", "--model", llama_dir, "--run-dir", run_dir, "--keep-run")
    constant = edited(config, "  steps: 6", "  scheduler:\n    name: constant\n  steps: 6", "short.yaml")
    assert cli(*base, "--config", constant, "-o", tmp_path / "short").code == 0
    longer = edited(constant, "steps: 6", "steps: 9", "longer.yaml")
    refused = cli(*base, "--config", longer, "-o", tmp_path / "long")
    assert refused.code == 2 and "train.steps" in refused.err
    ran = cli(*base, "--config", longer, "-o", tmp_path / "long", "--allow-change", "train.steps", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert [p["step"] for p in report["curve"]] == [0, 3, 6, 9]
    assert report["run_dir"] == str(run_dir) and list(run_dir.glob("checkpoint-*"))


def test_what_others_keep_in_a_named_run_directory_stays(
    cli: Callable, config: Path, llama_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "state"
    tracked = edited(config, "train:\n  loss", "tracking:\n  tensorboard: true\n  wandb_mode: disabled\ntrain:\n  loss")
    ran = cli(
        "train", "--config", tracked, "--model", llama_dir, "-o", tmp_path / "out", "--run-dir", run_dir, "--json"
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["run_dir"] == str(run_dir)
    assert list((run_dir / "tensorboard").iterdir())
    assert not list(run_dir.glob("checkpoint-*")) and not (run_dir / "start.safetensors").exists()
    again = cli("train", "--config", config, "--model", llama_dir, "-o", tmp_path / "o2", "--run-dir", run_dir)
    assert again.code == 0, again.err


def test_a_recipe_trains(cli: Callable, config: Path, llama_dir: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "title: Trained\nsteps:\n  - name: train\n    operation: train\n"
        f'    with: {{config: "{config}", model: "{llama_dir}", output: "${{out}}/trained"}}\n'
        '  - name: test\n    operation: test\n    with: {model: "${steps.train.path}", text: null, new_tokens: 2}\n',
        encoding="utf-8",
    )
    ran = cli("run", recipe, "--out", tmp_path / "o", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"][0]["result"]["after"]["value"] > 1
    again = json.loads(cli("run", recipe, "--out", tmp_path / "o", "--json").out)
    assert [s["action"] for s in again["steps"]] == ["cached", "cached"]


def test_the_other_processes_of_a_run_say_nothing(
    cli: Callable, config: Path, llama_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    words = ("train", "--config", config, "--model", llama_dir, "-o", tmp_path / "out", "--dry-run")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for more in ((), ("--json",)):
        ran = cli(*words, *more)
        assert (ran.code, ran.out, ran.err) == (0, "", "")


def few_steps(name: str, target: Path, **loss: Any) -> Path:
    """A copy with two steps on a few short rows: nothing else is changed."""
    values = yaml.safe_load(catalog.shipped()[name].read_text(encoding="utf-8"))
    values["train"] |= {"steps": 2, "eval_every": 2, "batch_rows": 4, "grad_accum": 1, "eval_rows": 2}
    values["train"]["loss"] |= loss
    for part in values["data"].values():
        part |= {"window": 32, "max_rows": 8}
    target.write_text(yaml.safe_dump(values), encoding="utf-8")
    return target


@pytest.mark.parametrize("name", [n for n in catalog.shipped() if n != "distill/cached"])
def test_every_shipped_config_runs_with_the_embedded_model(name: str, cli: Callable, tmp_path: Path) -> None:
    teacher = ("--teacher", "tiny") if name.startswith(("distill/", "recover/")) else ()
    path = few_steps(name, tmp_path / "copy.yaml")
    ran = cli("train", "--config", path, "--model", "tiny", *teacher, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 2


def test_two_processes_train_together_and_one_of_them_tells(
    cli: Callable, config: Path, llama_dir: Path, tmp_path: Path
) -> None:
    """Two processes of two rows are one of four: the same step, in another order of sums."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["--model", str(llama_dir), "--json"]
    ran = subprocess.run(
        [*torchrun, "-m", "apt_model", "train", "--config", str(config), *words, "-o", str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    two = json.loads(ran.stdout)
    whole = edited(config, "batch_rows: 2", "batch_rows: 4")
    one = json.loads(cli("train", "--config", whole, *words, "-o", tmp_path / "one").out)
    assert two["tokens"] == one["tokens"]
    assert two["before"]["value"] == pytest.approx(one["before"]["value"], rel=1e-6)
    assert two["after"]["value"] == pytest.approx(one["after"]["value"], rel=1e-5)
    assert {p.name for p in tmp_path.iterdir() if "two" in p.name} == {"two"}


def test_the_shipped_config_of_a_cache_runs_once_it_is_captured(cli: Callable, tmp_path: Path) -> None:
    logits = tmp_path / "logits"
    path = few_steps("distill/cached", tmp_path / "copy.yaml", teacher={"name": "cache", "path": str(logits)})
    call = ("distill", "--config", path, "--teacher", "tiny", "--student", "tiny", "--cache", logits)
    assert cli("train", "--config", path, "--model", "tiny", "-o", tmp_path / "out").code == 3  # nothing is there yet
    assert not (tmp_path / "out").exists()
    ran = cli(*call, "-o", tmp_path / "first")
    assert ran.code == 0, ran.err
    ran = cli("train", "--config", path, "--model", "tiny", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 2
    assert json.loads(ran.out)["teacher"] is None
