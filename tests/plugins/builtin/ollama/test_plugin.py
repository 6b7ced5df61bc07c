"""The plugin's names and commands."""

import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apt.console import output
from apt.console.errors import AptError, CheckFailedError, NotFoundError, TargetExistsError, UsageError
from apt.plugins.builtin.ollama import OllamaExportPlugin
from apt.plugins.builtin.ollama.commands import app
from apt.registry import Component, load_target


@pytest.fixture(autouse=True)
def plain_output():
    yield
    output.configure()


class Recorder:
    def __init__(self) -> None:
        self.commands: dict[str, str] = {}
        self.components: list[Component] = []

    def add_command(self, name, target, help="") -> None:
        assert help
        self.commands[name] = target

    def add_component(self, kind, name, target, schema="", summary="") -> None:
        self.components.append(Component(kind, name, target, schema, summary))


def run(*arguments: object) -> str:
    """Run a command; errors of ours come out as such, as they do in the real command line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, AptError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_names() -> None:
    assert OllamaExportPlugin.name == "ollama-export"
    for method, names in {
        "export_to_ollama": ["self", "model_path", "modelfile_template"],
        "create_modelfile": ["self", "model_config"],
    }.items():
        parameters = inspect.signature(getattr(OllamaExportPlugin, method)).parameters
        assert list(parameters)[: len(names)] == names
        assert all(p.default is not p.empty for p in list(parameters.values())[len(names) :])


def test_declarations_can_be_loaded() -> None:
    recorder = Recorder()
    plugin = OllamaExportPlugin()
    plugin.register_commands(recorder)
    plugin.register_components(recorder)
    assert load_target(recorder.commands["ollama"]) is app
    assert {(c.kind, c.name) for c in recorder.components} == {
        ("operation", "export-gguf"),
        ("operation", "verify-gguf"),
        ("scorer", "llama.cpp"),
    }
    for component in recorder.components:
        assert callable(component.load())
    for component in (c for c in recorder.components if c.kind == "operation"):
        assert component.load_schema().model_config["extra"] == "forbid"


def test_methods(llama_dir: Path, tmp_path: Path) -> None:
    plugin = OllamaExportPlugin()
    result = plugin.export_to_ollama(str(llama_dir), "FROM ./{gguf}\n", output=tmp_path / "out", name="x")
    assert result.path.is_file()
    assert result.modelfile_path.read_text() == "FROM ./x.gguf\n"
    config = json.loads((llama_dir / "config.json").read_text())
    assert plugin.create_modelfile(config) == "FROM ./model.gguf\nPARAMETER num_ctx 128\n"
    assert plugin.create_modelfile({"from": "x"}) == "FROM x\n"


def test_default_output(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    OllamaExportPlugin().export_to_ollama(llama_dir)
    assert (tmp_path / "llama-ollama" / "llama.gguf").is_file()


def test_export_and_verify(llama_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    value = json.loads(run("export", llama_dir, "-o", out, "--type", "f16", "--name", "x", "--json"))
    assert value["path"] == str(out / "x.gguf")
    assert (out / "Modelfile").read_text().startswith("FROM ./x.gguf\n")
    checked = json.loads(run("verify", out, "-m", llama_dir, "--llama-cpp", "skip", "--json"))
    assert checked["tensors"]["exact"] == checked["tensors"]["tensors"] == 29
    text = run("export", llama_dir, "-o", tmp_path / "other", "--dry-run")
    assert "Would be written" in text
    assert not (tmp_path / "other").exists()
    with pytest.raises(TargetExistsError):
        run("export", llama_dir, "-o", out)
    run("export", llama_dir, "-o", out, "--overwrite")
    assert (out / "llama.gguf").exists()


def test_modelfile_option(llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "Mine").write_text("FROM ./{gguf}\nSYSTEM hi\n")
    run("export", llama_dir, "-o", tmp_path / "out", "--modelfile", tmp_path / "Mine")
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./llama.gguf\nSYSTEM hi\n"
    with pytest.raises(NotFoundError):
        run("export", llama_dir, "-o", tmp_path / "out2", "--modelfile", tmp_path / "none")


@pytest.mark.parametrize("option", [("--type", "q4_k_m"), ("--name", "a/b")])
def test_bad_options(llama_dir: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=option[1]):
        run("export", llama_dir, "-o", tmp_path / "out", *option)


def test_errors(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        run("export", tmp_path / "none", "-o", tmp_path / "out")
    with pytest.raises(NotFoundError):
        run("verify", tmp_path / "none.gguf", "-m", llama_dir)
    run("export", llama_dir, "-o", tmp_path / "out", "--type", "f32")
    gguf = tmp_path / "out" / "llama.gguf"
    raw = bytearray(gguf.read_bytes())
    raw[-40] ^= 1
    gguf.write_bytes(raw)
    with pytest.raises(CheckFailedError):
        run("verify", gguf, "-m", llama_dir, "--llama-cpp", "skip")


def test_help_has_examples() -> None:
    for command in ("export", "verify"):
        assert f"apt_model ollama {command}" in run(command, "--help")
