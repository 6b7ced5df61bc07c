"""Every hook of the host, typed: the whole contract in one sitting.

A plugin implements a hook by a method of that name; it may take fewer of the arguments than the hook has, by their
names. :data:`hookimpl` is needed only for an order (``@hookimpl(tryfirst=True)``). A hook that raises is reported and
left out; it never stops the operation that called it. ``docs/hooks.md`` is generated from this file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pluggy

from apt.plugins.base import CommandRegistry, ComponentRegistry, Diagnosis

PROJECT: Final = "apt_model"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks, in the order in which a plugin meets them."""

    @hookspec
    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare commands. Called when the index is built; must be cheap and import nothing heavy."""

    @hookspec
    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare components: what recipes and configs choose by name. Called when the index is built."""

    @hookspec
    def before_operation(self, operation: str, options: Mapping[str, Any]) -> None:
        """Learn that a command or a recipe step begins.

        :param operation: the command's words (``"prune"``, ``"ollama export"``) or the step's operation.
        :param options: what it was called with, by parameter name.
        """

    @hookspec
    def after_operation(
        self, operation: str, options: Mapping[str, Any], seconds: float, error: BaseException | None
    ) -> None:
        """Learn that a command or a recipe step has ended.

        :param seconds: wall time since its beginning.
        :param error: what it ended with, or ``None``.
        """

    @hookspec
    def checkpoint_written(self, path: Path, operation: str, metrics: Mapping[str, Any]) -> None:
        """Learn that a checkpoint is complete and in its place.

        :param path: its directory.
        :param operation: what wrote it, as in its lineage.
        :param metrics: the figures in its lineage.
        """

    @hookspec
    def on_training_start(self, steps: int, options: Mapping[str, Any]) -> None:
        """Learn that a training run begins.

        :param steps: optimizer steps that it will take.
        :param options: its config as plain values.
        """

    @hookspec
    def on_training_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Learn the metrics of an optimizer step (``loss``, ``learning_rate``, …), counted from 1."""

    @hookspec
    def on_training_end(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Learn that a training run has ended, with its final metrics."""

    @hookspec
    def model_information(self, path: Path) -> Mapping[str, str]:  # type: ignore[empty-body]  # a spec has no body
        """Return what ``apt_model info`` should tell of a model beside its own facts, as label and text.

        :param path: the model's directory or file; its weights are not to be read.
        """

    @hookspec
    def diagnostics(self) -> Sequence[Diagnosis]:  # type: ignore[empty-body]  # a spec has no body
        """Return what ``apt_model debug`` should say about the plugin's part of the environment."""
