"""``info``: both forms of output, and one clear line for what cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_json_and_table_tell_the_same(cli: Callable, llama_dir: Path) -> None:
    ran = cli("info", llama_dir, "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts["architecture"] == "llama" and facts["kv_groups"] == 2
    shown = cli("info", llama_dir).out
    assert f"{facts['parameters']:,}" in shown and "groups of 2" in shown and "\x1b" not in shown


@pytest.mark.parametrize(("command", "codes"), [("info", (3, 4, None)), ("size", (3, 4, 5)), ("test", (3, 4, 5))])
def test_bad_models_give_one_line(
    command: str, codes: tuple[int, int, int | None], cli: Callable, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    truncated = new_llama(tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    outside = new_llama(tmp_path / "outside")
    (outside / "model.safetensors").unlink()
    (outside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    missing, bad, unsupported = codes
    for ref, code, words in (
        (tmp_path / "missing", missing, "no model"),
        ("no-such-name", missing, "no model"),
        ("hf:owner/name", missing, "not in the Hugging Face cache"),
        (tmp_path / "empty", missing, "no config.json"),
        (truncated, bad, "truncated"),
        (outside, bad, "leaves the directory"),
        (pickled, unsupported, "pickled"),
    ):
        if code is None:  # info tells of pickles, by their opcodes
            continue
        ran = cli(command, ref)
        assert (ran.code, ran.out) == (code, ""), ref
        assert words in ran.err and ran.err.count("\n") == 1 and ran.err.startswith("error: "), ran.err
    ran = cli(command, truncated, "--json")
    assert json.loads(ran.out)["error"]["exit_code"] == bad


def test_context_and_batch(cli: Callable, llama_dir: Path) -> None:
    facts = json.loads(cli("info", llama_dir, "--context", 64, "--batch", 4, "--json").out)
    assert (facts["kv"]["context_tokens"], facts["kv"]["batch_rows"]) == (64, 4)
    assert facts["kv"]["size_bytes"] == 64 * 4 * facts["kv_bytes_per_token"]
    assert cli("info", llama_dir, "--context", 0).code == 2


def test_a_pickle_is_told_of_and_not_run(cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "evil.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    ran = cli("info", tmp_path / "evil.bin")
    assert ran.code == 0 and "os.system" in ran.out
    (tmp_path / "cut.bin").write_bytes(b"\x80\x02cos\nsys")
    ran = cli("info", tmp_path / "cut.bin")
    assert ran.code == 4 and ran.err.count("\n") == 1


def test_plugins_add_facts(cli: Callable, llama_dir: Path, apt_home: Path) -> None:
    (apt_home / "plugins").mkdir(parents=True)
    source = """
from apt.plugins.base import Plugin

class Made(Plugin):
    name = "{0}"
    version = "1"
    def information(self, model):
        return {1}
"""
    (apt_home / "plugins" / "tells.py").write_text(source.format("tells", "{'owner': f'小王 of {model.name}'}"))
    (apt_home / "plugins" / "wrong.py").write_text(source.format("wrong", "3"))
    (apt_home / "plugins" / "raises.py").write_text(source.format("raises", "1 / 0"))
    ran = cli("info", llama_dir, "--json")
    assert ran.code == 0 and "raises" in ran.err
    assert json.loads(ran.out)["from_plugins"] == {"owner": f"小王 of {llama_dir.name}"}
    assert "小王" in cli("info", llama_dir).out
