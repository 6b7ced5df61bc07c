"""``debug``: the environment without a model, findings and exit codes with one."""

import json
from collections.abc import Callable
from pathlib import Path


def test_the_environment_is_described(cli: Callable) -> None:
    ran = cli("debug", "--json")
    found = json.loads(ran.out)
    assert found["packages"]["torch"] and {p["name"] for p in found["plugins"]} >= {"model-pruning", "ollama-export"}
    assert ran.code == (10 if any(f["severity"] == "error" for f in found["findings"]) else 0)


def test_models_sound_faulty_and_missing(
    cli: Callable, llama_dir: Path, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    ran = cli("debug", llama_dir)
    assert ran.code == 0 and "healthy" in ran.out and "error" not in ran.out
    path = new_llama(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    ran = cli("debug", path, "--json")
    found = json.loads(ran.out)
    assert ran.code == 10 and found["verdict"] == "faulty"
    assert found["findings"][0]["code"] == "missing-tensor" and "layers.3" in found["findings"][0]["where"]
    assert cli("debug", tmp_path / "nowhere").code == 3
