"""Names that users' scripts depend on: plugins, commands, folders, classes and their methods' parameters."""

import importlib
import inspect

import pytest

from apt.plugins import host
from apt.plugins.base import Plugin
from apt.plugins.core import CORE_COMMANDS, LEGACY_COMMANDS

#: canonical name → command, package, class, methods with their first parameters.
PLUGINS = {
    "huggingface-integration": (
        "huggingface",
        "builtin.huggingface",
        "HuggingFacePlugin",
        {
            "import_model": ["model_name_or_path"],
            "export_model": ["model", "repo_name"],
            "load_dataset": ["dataset_name"],
            "train_with_hf_trainer": ["model", "dataset"],
        },
    ),
    "cloud-storage": (
        "cloud-storage",
        "builtin.cloud_storage",
        "CloudStoragePlugin",
        {
            "backup": ["model_path", "destination"],
            "upload": ["files", "repo_name", "platform"],
            "download": ["repo_name", "platform", "local_path"],
        },
    ),
    "ollama-export": (
        "ollama",
        "builtin.ollama",
        "OllamaExportPlugin",
        {"export_to_ollama": ["model_path", "modelfile_template"], "create_modelfile": ["model_config"]},
    ),
    "model-distillation": (
        "distill",
        "optional.distillation",
        "DistillationPlugin",
        {"distill": ["teacher_model", "student_model", "data", "temperature", "alpha"]},
    ),
    "model-pruning": (
        "prune",
        "optional.pruning",
        "ModelPruningPlugin",
        {"prune_model": ["model", "pruning_ratio", "strategy"]},
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_bears_its_names(name: str) -> None:
    command, package, class_name, _ = PLUGINS[name]
    data = host.load()
    record = data.plugin(name)
    assert (record.name, record.commands) == (name, (command,))
    assert record.target == f"apt.plugins.{package}:{class_name}"
    for other in (command, record.folder, record.folder.replace("_", "-")):
        assert data.plugin(other) is record


@pytest.mark.parametrize("name", PLUGINS)
def test_methods_take_the_published_parameters(name: str) -> None:
    _, package, class_name, methods = PLUGINS[name]
    found = getattr(importlib.import_module(f"apt.plugins.{package}"), class_name)
    assert issubclass(found, Plugin)
    for method, expected in methods.items():
        parameters = list(inspect.signature(getattr(found, method)).parameters.values())[1:]
        assert [p.name for p in parameters[: len(expected)]] == expected
        for extra in parameters[len(expected) :]:
            assert extra.default is not extra.empty or extra.kind is extra.VAR_KEYWORD, f"{method}({extra.name})"


def test_core_commands_are_there() -> None:
    wanted = {"info", "list", "size", "test", "compare", "debug", "plugin", "run", "quickstart"}
    assert wanted <= {c.name for c in CORE_COMMANDS}


def test_legacy_commands_are_accepted() -> None:
    assert set(LEGACY_COMMANDS) == {
        "train-hf",
        "backup",
        "upload",
        "export-ollama",
        "process-data",
        "train-multimodal",
        "train-reasoning",
    }
