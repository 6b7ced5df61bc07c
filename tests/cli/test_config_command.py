"""``apt_model config``: what is shipped, copies of it, and faults with their places."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from apt.training import catalog

ROOT = Path(__file__).parents[2]


def test_the_promised_configs_are_shipped(cli: Callable) -> None:
    listed = json.loads(cli("config", "list", "--json").out)["configs"]
    assert {"sft/qwen2_5_3b_ce", "sft/qwen2_5_3b_focal", "distill/response"} <= {c["name"] for c in listed}
    assert all(c["summary"] for c in listed)
    ce, focal = (yaml.safe_load(catalog.shipped()[f"sft/qwen2_5_3b_{x}"].read_text()) for x in ("ce", "focal"))
    assert ce["train"]["loss"] == {"name": "ce", "label_smoothing": 0.0}
    assert focal["train"]["loss"] == {"name": "focal", "gamma": 2.0}


@pytest.mark.parametrize("name", catalog.shipped())
def test_a_shipped_config_opens_with_its_call_and_is_indented_by_two(name: str) -> None:
    text = catalog.shipped()[name].read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ") and any(f"# apt_model train --config configs/{name}.yaml" in line for line in head)
    depths = {len(line) - len(line.lstrip(" ")) for line in text.splitlines()}
    assert depths <= {0, 2, 4, 6, 8, 10, 12} and {2, 4} <= depths


def test_a_copy_is_the_config_to_the_letter_and_never_replaces(cli: Callable, tmp_path: Path) -> None:
    target = tmp_path / "new" / "mine.yaml"
    ran = cli("config", "cp", "sft/qwen2_5_3b_ce", target, "--json")
    assert ran.code == 0, ran.err
    assert target.read_bytes() == catalog.shipped()["sft/qwen2_5_3b_ce"].read_bytes()
    assert json.loads(ran.out)["size_bytes"] == target.stat().st_size
    target.write_text("mine")
    refused = cli("config", "cp", "sft/qwen2_5_3b_ce", target)
    assert refused.code == 7 and target.read_text() == "mine"
    assert cli("config", "cp", "distill/response", tmp_path / "new").code == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"mine.yaml", "response.yaml"}
    nowhere = cli("config", "cp", "sft/qwen2_5_3b_cee", tmp_path / "x.yaml")
    assert nowhere.code == 3 and "did you mean 'sft/qwen2_5_3b_ce'" in nowhere.err


def test_a_shown_config_is_whole_and_reads_as_itself(cli: Callable, tmp_path: Path) -> None:
    shown = cli("config", "show", "distill/response")
    assert shown.code == 0, shown.err
    values = yaml.safe_load(shown.out)
    assert values["train"]["guards"]["on_non_finite"] == "stop"
    path = tmp_path / "shown.yaml"
    path.write_text(shown.out, encoding="utf-8")
    first, second = (json.loads(cli("config", "show", ref, "--json").out) for ref in ("distill/response", path))
    assert first["sha256"] == second["sha256"] and first["config"] == second["config"] == values


def test_every_fault_of_every_file_is_told_and_what_was_checked(cli: Callable, tmp_path: Path) -> None:
    bad, worse = tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    bad.write_text("train:\n  stepz: 3\n  loss:\n    name: cee\n", encoding="utf-8")
    worse.write_text("train: [\n", encoding="utf-8")
    ran = cli("config", "validate", bad, worse, "sft/qwen2_5_3b_ce", "--json")
    assert ran.code == 2
    told = json.loads(ran.out)
    assert not told["sound"]
    places = [(Path(f["file"]).name, f["line"]) for f in told["faults"]]
    assert places == [("bad.yaml", 2), ("bad.yaml", 4), ("worse.yaml", 2)]
    assert told["faults"][0]["hint"] == "did you mean 'steps'?"
    (sound,) = told["configs"]
    assert "loss ce" in sound["components"] and sound["needs"] == ["model", "tokenizer"]
    text = cli("config", "validate", bad)
    assert text.code == 2 and f"{bad}:4" in text.out
    assert cli("config", "validate", "sft/qwen2_5_3b_ce").code == 0
    assert cli("config", "validate", tmp_path / "nowhere.yaml").code == 3


def test_an_installed_package_has_the_configs_too(tmp_path: Path) -> None:
    """The wheel holds them, and is all that is on the path."""
    pytest.importorskip("hatchling")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        names = [n for n in wheel.namelist() if n.startswith("apt/training/configs/")]
        assert {n.removeprefix("apt/training/configs/").removesuffix(".yaml") for n in names} == set(catalog.shipped())
        wheel.extractall(tmp_path / "site")
    look = "from apt.training import catalog; print([c.name for c in catalog.listing().configs], catalog.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {look}"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={},
    )  # fmt: skip
    assert str(tmp_path / "site") in ran.stdout
    assert "sft/qwen2_5_3b_ce" in ran.stdout
