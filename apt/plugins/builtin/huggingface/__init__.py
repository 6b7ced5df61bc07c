"""The bridge to Hugging Face: models from and to a Hub, data sets, the Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from apt.plugins.base import CommandRegistry, ComponentRegistry, Plugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from apt.plugins.builtin.huggingface.exporting import ExportResult
    from apt.plugins.builtin.huggingface.importing import ImportResult
    from apt.plugins.builtin.huggingface.training import TrainedModel

_HERE = "apt.plugins.builtin.huggingface"


class HuggingFacePlugin(Plugin):
    """Imports models so that they can be relied on: pinned, hashed while received, every tensor accounted for."""

    name: ClassVar[str] = "huggingface-integration"
    version: ClassVar[str] = "0.1.0"
    author: ClassVar[str] = "The apt_model authors"
    description: ClassVar[str] = "Import models from a directory, the cache or a Hub, and export them"
    required_dependencies: ClassVar[Sequence[str]] = ("huggingface_hub>=1.0", "torch>=2.6", "transformers>=5.0,<6")
    optional_dependencies: ClassVar[Sequence[str]] = ("datasets>=3.0",)

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare ``huggingface``."""
        registry.add_command("huggingface", f"{_HERE}.commands:app", help=self.description)

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the operation ``import``."""
        registry.add_component(
            "operation",
            "import",
            f"{_HERE}.importing:import_model",
            f"{_HERE}.importing:ImportOptions",
            "import a model from a directory, the cache or a Hub, checked",
        )

    def import_model(self, model_name_or_path: str, output: str | Path | None = None) -> "ImportResult":
        """Import a model into the store (or ``output``); a bare name is a model of the Hub, as on the command line."""
        from apt.plugins.builtin.huggingface.importing import ImportOptions, import_model
        from apt.plugins.builtin.huggingface.origins import as_hub_name, default_output

        ref = as_hub_name(model_name_or_path)
        return import_model(ImportOptions(model=ref, output=Path(output) if output else default_output(ref)))

    def export_model(self, model: str | Path, repo_name: str) -> "ExportResult":
        """Send a checkpoint to a repository of the Hub, as one commit, and compare what the Hub then holds."""
        from apt.plugins.builtin.huggingface.exporting import ExportOptions, export_model

        return export_model(ExportOptions(model=str(model), repository=repo_name))

    def load_dataset(self, dataset_name: str, **options: Any) -> Any:
        """Return a data set of ``datasets`` by name or path; ``options`` (``split``, ``revision``, …) are passed on.

        :raises MissingDependencyError: when ``datasets`` is not installed.
        """
        from apt.console.errors import MissingDependencyError

        try:
            import datasets
        except ModuleNotFoundError:
            raise MissingDependencyError(
                "loading data sets needs the package 'datasets'", hint="pip install datasets"
            ) from None
        return datasets.load_dataset(dataset_name, **options)

    def train_with_hf_trainer(self, model: "PreTrainedModel", dataset: Any, **options: Any) -> "TrainedModel":
        """Train a model in place with transformers' Trainer; see :func:`.training.train` for the options."""
        from apt.plugins.builtin.huggingface.training import train

        return train(model, dataset, **options)
