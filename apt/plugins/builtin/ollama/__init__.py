"""Export to GGUF and Ollama, with proof in llama.cpp."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apt.plugins.base import CommandRegistry, ComponentRegistry, Plugin

if TYPE_CHECKING:
    from pathlib import Path

    from apt.plugins.builtin.ollama.options import ExportType
    from apt.plugins.builtin.ollama.results import ExportResult

_ROOM = "apt.plugins.builtin.ollama"


class OllamaExportPlugin(Plugin):
    """The plugin ``ollama-export``; everything heavy is imported when a method is called."""

    name = "ollama-export"
    version = "0.1.0"
    author = "The apt_model authors"
    description = "write a checkpoint as GGUF with a Modelfile, and prove it in llama.cpp"
    required_dependencies = ("gguf>=0.17",)
    optional_dependencies = ("xllamacpp>=2026.10",)

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare ``ollama export`` and ``ollama verify``."""
        registry.add_command("ollama", f"{_ROOM}.commands:app", help="export to GGUF with a Modelfile, and verify it")

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the two operations, and the runtime that ``compare`` runs a GGUF in."""
        registry.add_component(
            "operation", "export-gguf", f"{_ROOM}.export:export_gguf", f"{_ROOM}.options:ExportOptions",
            "write a checkpoint as GGUF with a Modelfile",
        )  # fmt: skip
        registry.add_component(
            "operation", "verify-gguf", f"{_ROOM}.verify:verify_gguf", f"{_ROOM}.options:VerifyOptions",
            "prove a GGUF against its checkpoint, by values and in llama.cpp",
        )  # fmt: skip
        registry.add_component(
            "scorer", "llama.cpp", f"{_ROOM}.scorer:LlamaCppScorer", summary="run a GGUF in llama.cpp"
        )

    def export_to_ollama(
        self,
        model_path: "str | Path",
        modelfile_template: str = "",
        *,
        output: "str | Path | None" = None,
        type: "ExportType" = "q8_0",
        name: str = "",
        overwrite: bool = False,
    ) -> "ExportResult":
        """Write a model as GGUF with a Modelfile.

        :param model_path: a path, a name in the store, ``hf:owner/name[@revision]`` or ``tiny``.
        :param modelfile_template: text of the Modelfile, ``{gguf}`` in it standing for the file's name; generated
            when empty.
        :param output: the directory that appears; ``<model's name>-ollama`` in the current one when absent.
        """
        from pathlib import Path

        from apt.checkpoint.reader import Checkpoint
        from apt.plugins.builtin.ollama.export import export_gguf
        from apt.plugins.builtin.ollama.options import ExportOptions

        target = Path(output) if output else Path(f"{Checkpoint.open(model_path).name}-ollama")
        return export_gguf(
            ExportOptions(
                model=str(model_path),
                output=target,
                type=type,
                name=name,
                modelfile_template=modelfile_template,
                overwrite=overwrite,
            )
        )

    def create_modelfile(self, model_config: Mapping[str, Any]) -> str:
        """Return the text of a Modelfile.

        :param model_config: ``from`` with ``num_ctx``, ``stop``, ``template``, ``system``, ``license`` and
            ``parameters`` as wanted; or a transformers config, for a ``model.gguf`` beside the Modelfile.
        """
        from apt.plugins.builtin.ollama import modelfile

        if "model_type" in model_config and "from" not in model_config:
            context = int(model_config.get("max_position_embeddings") or modelfile.MAX_NUM_CTX)
            model_config = {"from": "./model.gguf", "num_ctx": min(context, modelfile.MAX_NUM_CTX)}
        return modelfile.render(model_config)
