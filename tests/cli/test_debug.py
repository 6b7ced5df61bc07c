"""``debug``: the environment without a model, findings and exit codes with one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_environment_is_described(cli: Callable) -> None:
    ran = cli("debug", "--json")
    found = json.loads(ran.out)
    assert found["packages"]["torch"] and {p["name"] for p in found["plugins"]} >= {"model-pruning", "ollama-export"}
    assert ran.code == (10 if any(f["severity"] == "error" for f in found["findings"]) else 0)


def test_plugins_tell_what_they_find(cli: Callable, apt_home: Path) -> None:
    (apt_home / "plugins").mkdir(parents=True)
    source = """
from apt.plugins.base import Diagnosis, Plugin

class Made(Plugin):
    name = "{0}"
    version = "1"
    def diagnostics(self):
        return {1}
"""
    sound = "[Diagnosis('disk', True, 'fast'), Diagnosis('gpu', False, 'none is there', 'buy one'), 'nonsense']"
    (apt_home / "plugins" / "tells.py").write_text(source.format("tells", sound))
    (apt_home / "plugins" / "wrong.py").write_text(source.format("wrong", "3"))
    found = json.loads(cli("debug", "--json").out)
    assert [(c["check"], c["ok"]) for c in found["checks"]] == [("disk", True), ("gpu", False)]
    (told,) = [f for f in found["findings"] if f["code"] == "plugin-check"]
    assert (told["severity"], told["where"], told["evidence"], told["mend"]) == (
        "warning", "gpu", "none is there", "buy one"
    )  # fmt: skip
    assert "FAILED" in cli("debug").out


def test_plugins_check_models_too(cli: Callable, apt_home: Path, llama_dir: Path) -> None:
    (apt_home / "plugins").mkdir(parents=True)
    (apt_home / "plugins" / "house.py").write_text("""
from apt.plugins.base import Diagnosis, Plugin

class House(Plugin):
    name = "house"
    version = "1"
    def model_diagnostics(self, model):
        card = (model / "README.md").is_file()
        return [Diagnosis("model card", card, f"{model.name} has none", "write one"), Diagnosis("licence", True, "")]
""")
    ran = cli("debug", llama_dir, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0 and found["verdict"] == "suspicious" and {"model card", "licence"} <= set(found["checked"])
    (told,) = found["findings"]
    assert (told["code"], told["where"], told["evidence"]) == ("plugin-check", "model card", "llama has none")


def test_deep_and_its_text(cli: Callable, llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "文.txt").write_text("def add(a, b):\n    return a + b\n" * 20, encoding="utf-8")
    found = json.loads(cli("debug", llama_dir, "--deep", "--text", tmp_path / "文.txt", "--json").out)
    assert found["verdict"] == "healthy" and "KV cache" in found["checked"] and "文.txt" in found["checked"][-2]
    assert cli("debug", llama_dir, "--deep", "--text", tmp_path / "gone.txt").code == 3
    assert cli("debug", "--deep").code == 2


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


def test_a_text_without_deep_is_refused(cli: Callable, llama_dir: Path) -> None:
    for words in (("debug", "--text", "x.txt"), ("debug", llama_dir, "--text", "x.txt")):
        ran = cli(*words)
        assert ran.code == 2 and "--deep" in ran.err


def test_the_list_of_what_was_looked_at_is_read_in_chinese(
    cli: Callable, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_LANG", "zh-CN")
    assert "文件、配置、设置、张量、特殊 token、分词器、聊天模板、权重" in cli("debug", llama_dir).out


def test_settings_that_no_descriptor_takes_do_not_hide_the_findings(
    cli: Callable, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    model = new_llama(tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 0}))
    ran = cli("debug", model, "--deep", "--json")
    assert ran.code == 10 and "max_position_embeddings" in ran.out
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1}))
    assert cli("debug", model, "--deep").code == 0


def test_a_quantised_model_without_its_library(cli: Callable, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    model = new_llama(tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    stated = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    ran = cli("debug", model, "--deep")
    assert ran.code == 6 and "optimum" in ran.err
