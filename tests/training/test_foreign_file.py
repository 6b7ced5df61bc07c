"""One file of the store brings a component of every training kind; YAML alone chooses them, for a call and a recipe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_parts
import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.registry import CORE_COMPONENTS, KINDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plugin(apt_home: Path) -> None:
    (apt_home / "plugins").mkdir(parents=True)
    source = foreign_parts.PARTS + foreign_parts.plugin()
    (apt_home / "plugins" / "far_training.py").write_text(source, encoding="utf-8")


def test_every_kind_of_training_is_brought() -> None:
    training = set(KINDS) - {"operation", "strategy", "scorer"}
    assert set(foreign_parts.TARGETS) == training


def test_a_run_of_foreign_components_alone(cli: Callable[..., Any], tmp_path: Path, llama_dir: Path) -> None:
    witness = tmp_path / "witness"
    witness.mkdir()
    config = tmp_path / "far.yaml"
    config.write_text(foreign_parts.config(str(witness)), encoding="utf-8")
    assert not any(f"name: {c.name}\n" in config.read_text("utf-8") for c in CORE_COMPONENTS)
    call = ("train", "--config", config, "--model", llama_dir, "-o", tmp_path / "out")

    plan = cli(*call, "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert list(witness.iterdir()) == []

    ran = cli(*call, "--json")
    assert ran.code == 0, ran.err
    assert {p.name for p in witness.iterdir()} == set(foreign_parts.TARGETS)
    metrics = json.loads(ran.out)["metrics"]
    assert metrics["train/lr"] == pytest.approx(0.125)  # its optimizer's 0.25, halved by its scheduler
    assert metrics["reward/mean"] == 1.0  # its sampler takes the green rows only
    assert metrics["loss/far"] > 0
    assert json.loads(ran.out)["tokens"] == 3 * 4 * 6  # what its rollout wrote
    before, after = (Checkpoint.open(p).load().state_dict() for p in (llama_dir, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {name for name in before if "norm" in name}  # its tuning trains nothing else


def test_its_options_are_checked_like_those_of_the_core(cli: Callable[..., Any], tmp_path: Path) -> None:
    text = foreign_parts.config("w").replace("pull: 0.25", "pul: 0.25").replace("far-sampler", "far-sampleer")
    path = tmp_path / "far.yaml"
    path.write_text(text, encoding="utf-8")
    ran = cli("config", "validate", path, "--json")
    assert ran.code == 2
    lines = text.splitlines()
    told = {(p["line"], p["hint"]) for p in json.loads(ran.out)["faults"]}
    assert told == {
        (lines.index("    pul: 0.25") + 1, "did you mean 'pull'?"),
        (lines.index("    name: far-sampleer") + 1, "did you mean 'far-sampler'?"),
    }


def test_a_recipe_step_trains_with_it(cli: Callable[..., Any], tmp_path: Path, llama_dir: Path) -> None:
    (tmp_path / "witness").mkdir()
    config = tmp_path / "far.yaml"
    config.write_text(foreign_parts.config(str(tmp_path / "witness")), encoding="utf-8")
    step = {"config": str(config), "model": str(llama_dir), "output": "${out}/trained"}
    recipe = tmp_path / "recipe.yaml"
    steps = [{"name": "train", "operation": "train", "with": step}]
    recipe.write_text(json.dumps({"title": "Train", "steps": steps}), encoding="utf-8")
    ran = cli("run", recipe, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert {p.name for p in (tmp_path / "witness").iterdir()} == set(foreign_parts.TARGETS)
    assert (tmp_path / "run" / "trained" / "model.safetensors").is_file()
