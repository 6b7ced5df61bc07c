"""From the sections of a config to what they name."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from apt.console.errors import AptError, UsageError, one_line
from apt.document import Location
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.contract import Loss, Resources
from apt.training.sections import OfKind, Section, parts_of

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


def target_of(kind: str, section: Section, registry: Registry | None = None) -> Any:
    """Import what the component that a section names is made by.

    :raises AptError: in one line, when the module of a plugin cannot be imported.
    """
    component = component_of(kind, section, registry)
    try:
        return component.load()
    except (AptError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever the import of somebody else's module raises
        if not component.plugin:
            raise
        raise AptError(
            f"the {kind} {section.name!r} of the plugin {component.plugin!r} cannot be imported: {one_line(error)}"
        ) from error


def build(kind: str, section: Section, resources: Resources) -> Any:
    """Return what the component that a section names makes of it.

    :raises UsageError: when it needs a resource (a teacher, a tokenizer) that is not given.
    """
    target = target_of(kind, section, resources.registry)
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
    for _, kind, section in placed_sections(model):
        yield kind, section


def placed_sections(model: BaseModel, at: Location = ()) -> Iterator[tuple[Location, str, Section]]:
    """Yield every section in a config with its place and the kind of component that it names, outer ones first."""
    for name, field in type(model).model_fields.items():
        marks = [m.kind for m in field.metadata if isinstance(m, OfKind)]
        marks += [p.kind for p in parts_of(field.annotation) if isinstance(p, OfKind)]
        for place, value in _models(getattr(model, name), (*at, name)):
            if isinstance(value, Section) and marks:
                yield place, marks[0], value
            yield from placed_sections(value, place)


def needed_by(config: BaseModel, registry: Registry | None = None) -> dict[str, str]:
    """Return what a config's components cannot do without, each with the first that needs it: ``teacher 'memory'``."""
    found: dict[str, str] = {}
    for kind, section in sections_of(config):
        always: frozenset[str] = getattr(target_of(kind, section, registry), "needs", frozenset())
        for need in sorted(always | section.further_needs()):
            found.setdefault(need, f"{kind} {section.name!r}")
    return found


def _models(value: Any, at: Location) -> Iterator[tuple[Location, BaseModel]]:
    if isinstance(value, BaseModel):
        yield at, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _models(item, (*at, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _models(item, (*at, index))
