"""Training some parameters; the others stay as they are."""

from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from apt.console.errors import UnsupportedError, UsageError
from apt.registry import did_you_mean
from apt.training.contract import Resources
from apt.training.forward import layers_of
from apt.training.sections import Section


class FrozenOptions(Section):
    """Options of ``frozen``: what ``last_layers`` and ``train`` choose, all when neither is given, less ``freeze``."""

    name: Literal["frozen"] = Field(default="frozen", description="The component.")
    last_layers: int | None = Field(default=None, ge=1, description="Train this many layers, the last ones.")
    train: list[str] | None = Field(
        default=None, min_length=1, description="Train parameters whose names match one of these patterns (*.mlp.*)."
    )
    freeze: list[str] | None = Field(
        default=None, min_length=1, description="Leave parameters alone whose names match one of these patterns."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.last_layers is None and self.train is None and self.freeze is None:
            raise ValueError("give last_layers, train or freeze; to train everything, the tuning is full")
        return self


class Frozen:
    """Trains the chosen parameters in place.

    A tensor with several names (a tied head) is one parameter: what is said of any of its names is said of it.
    """

    def __init__(self, options: FrozenOptions, resources: Resources) -> None:
        self._options = options

    def begin(self, model: Any) -> Any:
        """Return the model with ``requires_grad`` on what is trained only.

        :raises UsageError: for a pattern that matches nothing, and where nothing is left to train.
        """
        options = self._options
        named = dict(model.named_parameters(remove_duplicate=False))
        chosen: set[int] = set()
        if options.last_layers is not None:
            chosen |= _of_last_layers(model, options.last_layers)
        if options.train is not None:
            chosen |= _matching(named, options.train, "train")
        if options.last_layers is None and options.train is None:
            chosen = {id(parameter) for parameter in named.values()}
        if options.freeze is not None:
            chosen -= _matching(named, options.freeze, "freeze")
        if not chosen:
            raise UsageError("train.tuning: no parameter is left to train")
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        return model

    def finish(self, model: Any) -> Any:
        """Return the model with nothing frozen."""
        return model.requires_grad_(True)


def _matching(named: dict[str, nn.Parameter], patterns: list[str], key: str) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        matching = {id(parameter) for name, parameter in named.items() if fnmatchcase(name, pattern)}
        if not matching:
            near = did_you_mean(pattern, named) if len(named) < 20 else f"such as {next(iter(named))}"
            raise UsageError(f"train.tuning.{key}: no parameter matches {pattern!r}", hint=near)
        found |= matching
    return found


def _of_last_layers(model: Any, wanted: int) -> set[int]:
    n_layers = model.config.get_text_config().num_hidden_layers
    if wanted > n_layers:
        raise UsageError(f"train.tuning.last_layers: {wanted} of {n_layers} layers")
    layers = layers_of(model)
    if layers is None:
        raise UnsupportedError(
            f"train.tuning.last_layers: the layers of {model.config.model_type} are not known",
            hint="use train or freeze",
        )
    return {id(parameter) for layer in list(layers)[-wanted:] for parameter in layer.parameters()}
