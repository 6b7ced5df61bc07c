"""From the sections of a config to what they name."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from apt.console.errors import UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.contract import Loss, Resources
from apt.training.sections import OfKind, Section

_Target = TypeVar("_Target", bound=Callable[..., Any])


def core_registry() -> Registry:
    """The components that the core brings itself."""
    return Registry(CORE_COMPONENTS)


def component_of(kind: str, section: Section, registry: Registry | None = None) -> Component:
    """Return the component that a section names."""
    return (registry or core_registry()).get(kind, section.name)


def needing(*names: str) -> Callable[[_Target], _Target]:
    """Mark a function as one that cannot do without these resources, as ``needs`` marks a class."""

    def mark(target: _Target) -> _Target:
        target.needs = frozenset(names)  # type: ignore[attr-defined]
        return target

    return mark


def build(kind: str, section: Section, resources: Resources) -> Any:
    """Return what the component that a section names makes of it.

    :raises UsageError: when it needs a resource (a teacher, a tokenizer) that is not given.
    """
    target = component_of(kind, section, resources.registry).load()
    for need in sorted(getattr(target, "needs", ())):
        if getattr(resources, need, None) is None:
            raise UsageError(f"the {kind} {section.name!r} needs a {need}")
    return target(section, resources)


def build_loss(options: Section, registry: Registry | None = None, *, resources: Resources | None = None) -> Loss:
    """Return the loss that a section describes.

    :raises UsageError: when the loss needs a resource (a teacher) that is not given.
    """
    given = resources or Resources()
    if registry is not None:
        given = dataclasses.replace(given, registry=registry)
    loss: Loss = build("loss", options, given)
    return loss


def sections_of(model: BaseModel) -> Iterator[tuple[str, Section]]:
    """Yield every section in a config and the kind of component that it names, outer ones first."""
    for name, field in type(model).model_fields.items():
        marks = [m.kind for m in field.metadata if isinstance(m, OfKind)]
        marks += [p.kind for p in _parts(field.annotation) if isinstance(p, OfKind)]
        for value in _models(getattr(model, name)):
            if isinstance(value, Section) and marks:
                yield marks[0], value
            yield from sections_of(value)


def needs_of(config: BaseModel, registry: Registry | None = None) -> frozenset[str]:
    """Return the names of the resources that a config's components cannot do without."""
    found = (component_of(kind, section, registry).load() for kind, section in sections_of(config))
    return frozenset().union(*(getattr(target, "needs", frozenset()) for target in found))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in (*typing.get_args(annotation), *getattr(annotation, "__metadata__", ())):
        yield from _parts(part)


def _models(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _models(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _models(item)
