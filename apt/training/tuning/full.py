"""Training all parameters."""

from typing import Any, Literal

from pydantic import Field

from apt.training.contract import Resources
from apt.training.sections import Section


class FullOptions(Section):
    """Options of ``full``."""

    name: Literal["full"] = Field(default="full", description="The component.")


class Full:
    """Every parameter is trained."""

    def __init__(self, options: FullOptions, resources: Resources) -> None:
        pass

    def begin(self, model: Any) -> Any:
        """Return the model with every parameter trainable."""
        return model.requires_grad_(True)

    def finish(self, model: Any) -> Any:
        """Return the model."""
        return model
