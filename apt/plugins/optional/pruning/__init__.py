"""Pruning: structured cuts and masks of decoders, fitted again in closed form; recovery; encoders by their graph."""

from typing import TYPE_CHECKING, Any

from apt.plugins.base import CommandRegistry, ComponentRegistry, Plugin

if TYPE_CHECKING:
    from pathlib import Path

_ROOM = "apt.plugins.optional.pruning"


class ModelPruningPlugin(Plugin):
    """The plugin ``model-pruning``; everything heavy is imported when a method is called."""

    name = "model-pruning"
    version = "0.1.0"
    author = "The apt_model authors"
    description = "remove layers, heads and ff channels and mend the rest, without training"
    required_dependencies = ("torch>=2.6", "transformers>=5.0,<6")
    optional_dependencies = ("torch-pruning>=1.6,<1.7",)

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare ``prune``."""
        registry.add_command("prune", f"{_ROOM}.commands:prune", help="make a model smaller: fewer layers, heads, ff")

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the operation and the strategies."""
        registry.add_component(
            "operation", "prune", f"{_ROOM}.operation:prune", f"{_ROOM}.options:PruneOptions", "prune a checkpoint"
        )
        registry.add_component(
            "strategy", "structured", f"{_ROOM}.strategies.structured:StructuredStrategy",
            f"{_ROOM}.strategies.structured:StructuredSettings",
            "layers, KV groups with their heads, ff and hidden channels, mended by least squares",
        )  # fmt: skip
        registry.add_component(
            "strategy", "magnitude", f"{_ROOM}.strategies.magnitude:MagnitudeStrategy",
            summary="zeroes the smallest weights: same size, same speed",
        )  # fmt: skip
        registry.add_component(
            "strategy", "lottery", f"{_ROOM}.strategies.lottery:LotteryStrategy",
            f"{_ROOM}.strategies.lottery:LotterySettings",
            "trains, zeroes the smallest weights, rewinds the others, and again: same size, same speed",
        )  # fmt: skip
        registry.add_component(
            "strategy", "dynamic", f"{_ROOM}.strategies.dynamic:DynamicStrategy",
            f"{_ROOM}.strategies.dynamic:DynamicSettings",
            "zeroes more and more weights while it trains: same size, same speed",
        )  # fmt: skip
        registry.add_component(
            "strategy", "dependency-graph", f"{_ROOM}.strategies.dependency_graph:DependencyGraphStrategy",
            f"{_ROOM}.strategies.dependency_graph:GraphSettings",
            "ff widths and channels of encoders and vision models, by torch-pruning",
        )  # fmt: skip
        registry.add_component(
            "strategy", "wanda", f"{_ROOM}.strategies.wanda:WandaStrategy",
            summary="zeroes weights by |w| times input norm in each row; nothing is updated",
        )  # fmt: skip
        registry.add_component(
            "strategy", "sparsegpt", f"{_ROOM}.strategies.sparsegpt:SparseGPTStrategy",
            summary="zeroes weights and updates the others by the inverse Hessian",
        )  # fmt: skip
        registry.add_component(
            "strategy", "taylor", f"{_ROOM}.strategies.taylor:TaylorStrategy",
            summary="zeroes weights by their Fisher information, from single rows of text",
        )  # fmt: skip
        registry.add_component(
            "strategy", "unstructured", f"{_ROOM}.strategies.unstructured:UnstructuredStrategy",
            summary="zeroes weights within budgets of each matrix by the measured rise of the loss",
        )  # fmt: skip
        registry.add_component(
            "strategy", "reconstruct", f"{_ROOM}.strategies.reconstruct:ReconstructStrategy",
            summary="zeroes weights and fits what is left of every block to the dense model; the best masks",
        )  # fmt: skip

    def prune_model(
        self,
        model: Any,
        pruning_ratio: float = 0.25,
        strategy: str = "structured",
        *,
        output: "Path | str | None" = None,
        calibration: str | None = None,
        overwrite: bool = False,
    ) -> Any:
        """Prune a model.

        :param model: a reference (path, store name, ``tiny``), or a transformers model in memory.
        :param output: where a checkpoint is written; ``<name>-pruned-<percent>`` in the store when absent.
        :returns: a :class:`~.result.PruneResult` for a reference, a new transformers model for one in memory.
        """
        from apt.plugins.optional.pruning import api

        if hasattr(model, "state_dict"):
            return api.prune_in_memory(model, pruning_ratio, strategy)
        return api.prune_reference(str(model), pruning_ratio, strategy, output, calibration, overwrite)
