"""Shows a healthy plugin of one file: a learning-rate schedule with a schema, chosen by name in a config.

    train:
      scheduler: {name: polynomial, power: 2.0}

The class and the calls in it are literal, so the schedule is listed before this file is imported for the first time.
"""

from typing import Literal

from pydantic import Field

from apt.plugins.base import ComponentRegistry, Plugin
from apt.training.sections import Section


class PolynomialOptions(Section):
    """Options of ``polynomial``: a power of 1 is a straight line."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(default=2.0, gt=0.0)
    final_share: float = Field(default=0.0, ge=0.0, le=1.0)


def polynomial(step: int, total: int, options: PolynomialOptions) -> float:
    """Return the learning-rate factor: it falls from 1 to ``final_share`` with a power of what is left of the run."""
    left: float = (1.0 - min(step, total) / total) ** options.power
    return options.final_share + (1.0 - options.final_share) * left


class PolynomialPlugin(Plugin):
    """Brings the schedule ``polynomial``."""

    name = "polynomial"
    version = "1.0.0"
    author = "The apt_model authors"
    description = "a learning rate that falls with a power of what is left of the run"

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the schedule and its options."""
        registry.add_component("scheduler", "polynomial", polynomial, PolynomialOptions, "polynomial decay")
