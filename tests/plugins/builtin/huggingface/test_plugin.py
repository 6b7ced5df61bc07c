"""The plugin's class, export, and training with the Trainer."""

import inspect
import sys

import pytest

from apt.console.errors import BadInputError, MissingDependencyError, NetworkError, UsageError
from apt.plugins.builtin.huggingface import HuggingFacePlugin

#: huggingface_hub's own call of its HTTP library.
UPLOADS = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_the_class_has_the_published_methods():
    first = {
        "import_model": ["model_name_or_path"],
        "export_model": ["model", "repo_name"],
        "load_dataset": ["dataset_name"],
        "train_with_hf_trainer": ["model", "dataset"],
    }
    for name, parameters in first.items():
        signature = inspect.signature(getattr(HuggingFacePlugin(), name))
        assert list(signature.parameters)[: len(parameters)] == parameters
        rest = list(signature.parameters.values())[len(parameters) :]
        assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in rest)


def test_a_bare_name_goes_into_the_store(hub, llama_dir, apt_home):
    hub.commit("small", {p.name: p.read_bytes() for p in llama_dir.iterdir()})
    result = HuggingFacePlugin().import_model("small")
    assert result.path == apt_home / "models" / "small" and (result.path / "config.json").is_file()


@UPLOADS
def test_an_exported_model_comes_back(hub, llama_dir, tmp_path, capsys):
    plugin = HuggingFacePlugin()
    sent = plugin.export_model(llama_dir, "me/sent")
    assert sent.repository == "me/sent" and sent.revision == hub.heads["me/sent"]
    back = plugin.import_model("me/sent", tmp_path / "back")
    assert back.revision == sent.revision
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (llama_dir / "model.safetensors").read_bytes()
    assert plugin.export_model(llama_dir, "me/sent").revision == sent.revision  # unchanged: no new commit


@UPLOADS
def test_what_the_hub_holds_afterwards_is_compared(hub, llama_dir, monkeypatch):
    real = hub.commit
    monkeypatch.setattr(
        hub,
        "commit",
        lambda name, files: real(name, files | ({"config.json": b"{}"} if "config.json" in files else {})),
    )
    with pytest.raises(BadInputError, match=r"another config\.json than was sent"):
        HuggingFacePlugin().export_model(llama_dir, "me/altered")


def test_exports_that_cannot_be(llama_dir, monkeypatch):
    with pytest.raises(UsageError):
        HuggingFacePlugin().export_model(llama_dir, "a/../b")
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        HuggingFacePlugin().export_model(llama_dir, "me/x")


def test_data_sets_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError) as caught:
        HuggingFacePlugin().load_dataset("any")
    assert caught.value.hint == "pip install datasets"


def test_the_trainer_trains(llama_dir, capsys):
    from apt.checkpoint.reader import Checkpoint

    model = Checkpoint.open(llama_dir).load()
    rows = [list(range(2, 20)), {"input_ids": list(range(30, 40))}] * 4
    trained = HuggingFacePlugin().train_with_hf_trainer(model, rows, steps=12, learning_rate=1e-2)
    assert trained.model is model and trained.steps == 12
    assert trained.losses[-1] < 0.8 * trained.losses[0]
    assert capsys.readouterr().out == ""
    with pytest.raises(BadInputError, match="no token ids"):
        HuggingFacePlugin().train_with_hf_trainer(model, [{"text": "untokenised"}])
