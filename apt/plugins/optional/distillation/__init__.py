"""Distillation: a student is drawn to its teacher's next-token distribution."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.plugins.base import CommandRegistry, ComponentRegistry, Plugin

if TYPE_CHECKING:
    from apt.plugins.optional.distillation.results import DistillResult

_HERE = "apt.plugins.optional.distillation"


class DistillationPlugin(Plugin):
    """The plugin ``model-distillation``: command ``distill`` and the operation of that name."""

    name = "model-distillation"
    version = "1.0.0"
    author = "the apt_model authors"
    description = "Train a student on its teacher's predictions"
    required_dependencies = ("torch>=2.10", "transformers>=5.20", "accelerate>=1.10")
    optional_dependencies = ()

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare ``distill``."""
        registry.add_command(
            "distill", f"{_HERE}.commands:distill", help="Train a student on its teacher's predictions."
        )

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the operation ``distill``."""
        registry.add_component(
            "operation",
            "distill",
            f"{_HERE}.operation:distill",
            f"{_HERE}.options:DistillOptions",
            "train a student on its teacher's predictions",
        )

    def distill(
        self,
        teacher_model: str | Path,
        student_model: str | Path | None,
        data: str | Path | None = None,
        temperature: float = 1.0,
        alpha: float | None = None,
        *,
        output: str | Path | None = None,
        **options: Any,
    ) -> "DistillResult":
        """Distill a student and write the best checkpoint.

        :param teacher_model: reference of the teacher: a path, a name in the store, ``hf:owner/name``, ``tiny``.
        :param student_model: reference of the student; it is not changed. ``None`` with ``student_shape="0.5x"``.
        :param data: ``embedded``, ``self`` or a text file; see :class:`.options.DistillOptions`.
        :param temperature: divides both sides' logits.
        :param alpha: weight of the distillation term; cross-entropy has the rest.
        :param output: the directory to write; a name in the store when absent.
        :param options: further fields of :class:`.options.DistillOptions`.
        """
        from apt.plugins.optional.distillation.operation import distill
        from apt.plugins.optional.distillation.options import DistillOptions, default_output

        given: dict[str, Any] = dict(options)
        if temperature != 1.0:
            given["temperature"] = temperature
        if data is not None:
            given["text"] = str(data)
        if alpha is not None:
            given["alpha"] = alpha
        return distill(
            DistillOptions(
                teacher=str(teacher_model),
                student=str(student_model) if student_model is not None else None,
                output=Path(output) if output is not None else default_output(str(student_model or teacher_model)),
                **given,
            )
        )
