"""Every hook of the host, typed: the whole contract in one sitting.

A plugin implements a hook by a method of that name; it may take fewer of the arguments than the hook has, by their
names. Who wants the signature checked derives the plugin's class from the hook's protocol too (``class Mine(Plugin,
AfterOperation)``): then mypy refuses one that does not fit. :func:`hookimpl` is needed only for an order
(``@hookimpl(tryfirst=True)``). A hook that raises is reported and left out; it never stops the operation that called
it. ``docs/hooks.md`` is generated from this file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from apt.plugins.base import CommandRegistry, ComponentRegistry, Diagnosis

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apt.plugins.hooks import hookimpl as hookimpl


def __getattr__(name: str) -> Any:
    """Return ``hookimpl``; pluggy is imported by those who use it only."""
    if name == "hookimpl":
        from apt.plugins.hooks import hookimpl

        return hookimpl
    raise AttributeError(name)


class RegisterCommands(Protocol):
    """Plugins with commands of their own."""

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare commands. Called in the plugin's trial; must be cheap and import nothing heavy.

        What it declares in literals is known before that.
        """


class RegisterComponents(Protocol):
    """Plugins with components of their own."""

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare components: what recipes and configs choose by name. Called in the plugin's trial."""


class BeforeOperation(Protocol):
    """Plugins that look at what begins."""

    def before_operation(self, operation: str, options: Mapping[str, Any]) -> None:
        """Learn that a command or a recipe step begins.

        :param operation: the command's words (``"prune"``, ``"ollama export"``) or the step's operation.
        :param options: what it was called with, by parameter name; a copy, whose changes reach nobody.
        """


class AfterOperation(Protocol):
    """Plugins that look at what has ended."""

    def after_operation(
        self, operation: str, options: Mapping[str, Any], seconds: float, error: BaseException | None
    ) -> None:
        """Learn that a command or a recipe step has ended.

        :param seconds: wall time since its beginning.
        :param error: what it ended with, or ``None``.
        """


class CheckpointWritten(Protocol):
    """Plugins that look at new checkpoints."""

    def checkpoint_written(self, path: Path, operation: str, metrics: Mapping[str, Any]) -> None:
        """Learn that a checkpoint is complete and in its place.

        :param path: its directory.
        :param operation: what wrote it, as in its lineage.
        :param metrics: the figures in its lineage.
        """


class OnTrainingStart(Protocol):
    """Plugins that follow training from its beginning."""

    def on_training_start(self, steps: int, options: Mapping[str, Any]) -> None:
        """Learn that a training run begins.

        :param steps: optimizer steps that it will take.
        :param options: its config as plain values.
        """


class OnTrainingStep(Protocol):
    """Plugins that follow training step by step."""

    def on_training_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Learn the metrics of an optimizer step (``loss``, ``learning_rate``, …), counted from 1."""


class OnTrainingEnd(Protocol):
    """Plugins that look at what training gave."""

    def on_training_end(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Learn that a training run has ended, with its final metrics."""


class Diagnostics(Protocol):
    """Plugins that look after their part of the environment."""

    def diagnostics(self) -> Sequence[Diagnosis]:
        """Return what ``apt_model debug`` should say about the plugin's part of the environment."""
        ...


class ModelDiagnostics(Protocol):
    """Plugins that find faults of models."""

    def model_diagnostics(self, model: Path) -> Sequence[Diagnosis]:
        """Return what ``apt_model debug MODEL`` should say beyond its own checks; what is not ok becomes a warning.

        :param model: the model's directory or file; it may be broken.
        """
        ...


class ModelChecks(Protocol):
    """Plugins that ask more of a model than that it is whole and runs."""

    def model_checks(self, model: Path) -> Sequence[Diagnosis]:
        """Return checks that ``apt_model test`` should hold a model to; one that is not ok fails the test.

        :param model: the checkpoint's directory; its files are whole.
        """
        ...


class Information(Protocol):
    """Plugins that know more of a model than its headers say."""

    def information(self, model: Path) -> Mapping[str, str]:
        """Return facts that ``apt_model info`` should show beside its own, by what they are called.

        :param model: the checkpoint's directory or file; it must be read cheaply (headers, JSON).
        """
        ...


class HookSpecs(
    RegisterCommands,
    RegisterComponents,
    BeforeOperation,
    AfterOperation,
    CheckpointWritten,
    OnTrainingStart,
    OnTrainingStep,
    OnTrainingEnd,
    Diagnostics,
    ModelDiagnostics,
    ModelChecks,
    Information,
    Protocol,
):
    """All hooks, in the order in which a plugin meets them."""
