"""What a training run is made of: a tree of sections, each validated by the schema of the component that it names."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from apt.console.errors import NotFoundError, UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry, did_you_mean
from apt.training.contract import Loss, Resources
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.optimizers.adamw import AdamWOptions
from apt.training.schedulers import CosineOptions
from apt.training.sections import Section

#: Keys of the ``train`` section that hold components, and the kind of each.
COMPONENT_KEYS: Final = {"loss": "loss", "optimizer": "optimizer", "scheduler": "scheduler"}

Precision = Literal["auto", "fp32", "bf16"]


class TrainSection(BaseModel):
    """The ``train`` section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: SerializeAsAny[Section] = Field(default=CrossEntropyOptions(), description="A component of kind loss.")
    optimizer: SerializeAsAny[Section] = Field(default=AdamWOptions(), description="A component of kind optimizer.")
    scheduler: SerializeAsAny[Section] = Field(default=CosineOptions(), description="A component of kind scheduler.")
    steps: int = Field(ge=1, description="Optimizer steps.")
    batch_rows: int = Field(
        default=8, ge=1, description="Rows of one micro-batch; a step sees batch_rows x grad_accum rows."
    )
    grad_accum: int = Field(default=1, ge=1, description="Micro-batches a step.")
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="Longer gradients are cut to this norm.")
    eval_every: int = Field(
        default=50, ge=1, description="Steps between evaluations; the run's state is saved at each."
    )
    eval_rows: int = Field(default=16, ge=1, description="Training rows that the best checkpoint is chosen by.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Order of the rows, and every other random choice.")
    precision: Precision = Field(
        default="auto", description="Of matrix products; auto is bf16 where the machine multiplies it natively."
    )


class TrainConfig(BaseModel):
    """A whole run by its settings; models, texts and outputs are named elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: TrainSection

    def resolved(self) -> dict[str, Any]:
        """Return the config as plain values, defaults filled in."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return the sha256 of the resolved config."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()


def core_registry() -> Registry:
    """The components that the core brings itself."""
    return Registry(CORE_COMPONENTS)


def parse_config(values: Mapping[str, Any], registry: Registry | None = None) -> TrainConfig:
    """Validate a config as a whole; nothing else is read.

    :raises UsageError: for an unknown key, component, type or range, with its path and the nearest known word.
    """
    registry = registry or core_registry()
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    train = tree.get("train")
    if isinstance(train, dict):
        for key, kind in COMPONENT_KEYS.items():
            if key in train:
                train[key] = _parse_section(f"train.{key}", train[key], kind, registry)
    config: TrainConfig = _validate(TrainConfig, tree, "")
    return config


def _parse_section(path: str, value: Any, kind: str, registry: Registry) -> Any:
    if isinstance(value, Section):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UsageError(f"{path}: expected a section with a 'name'", hint=f"known: {', '.join(registry.names(kind))}")
    try:
        component = registry.get(kind, value["name"])
    except NotFoundError as error:
        raise UsageError(f"{path}.name: {error.message}", hint=error.hint) from None
    component = component.admitted()
    return _validate(component.load_schema() if component.schema else Section, dict(value), path)


def _validate(schema: type[BaseModel], values: Mapping[str, Any], path: str) -> Any:
    try:
        return schema.model_validate(values, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(filter(None, [path, *map(str, first["loc"])]))
        if first["type"] == "extra_forbidden":
            known = _fields_at(schema, first["loc"][:-1])
            raise UsageError(f"{where}: unknown key", hint=did_you_mean(str(first["loc"][-1]), known)) from None
        raise UsageError(f"{where}: {first['msg'].lower()}, got {first['input']!r}") from None


def _fields_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model found by walking ``location`` down from ``schema``."""
    for part in location:
        inner = schema.model_fields[str(part)].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            schema = inner
    return list(schema.model_fields)


def component_of(kind: str, section: Section, registry: Registry | None = None) -> Component:
    """Return the component that a section names."""
    return (registry or core_registry()).get(kind, section.name)


def build_loss(options: Section, registry: Registry | None = None, *, resources: Resources | None = None) -> Loss:
    """Return the loss that a section describes.

    :raises UsageError: when the loss needs a resource (a teacher) that is not given.
    """
    target = component_of("loss", options, registry).load()
    resources = resources or Resources()
    for need in sorted(target.needs):
        if getattr(resources, need, None) is None:
            raise UsageError(f"the loss {options.name!r} needs a {need}")
    loss: Loss = target(options, resources)
    return loss
