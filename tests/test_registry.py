"""Components by kind and name."""

import pytest

from apt.console.errors import NotFoundError, UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry, did_you_mean, load_target


def test_names_are_unique_and_owned() -> None:
    registry = Registry(CORE_COMPONENTS)
    with pytest.raises(UsageError, match="already registered by the core"):
        registry.add(Component("operation", "test", "x:y"))
    with pytest.raises(UsageError, match="did you mean 'operation'"):
        registry.add(Component("operatoin", "x", "x:y"))
    with pytest.raises(NotFoundError, match="did you mean 'compare'"):
        registry.get("operation", "compre")


@pytest.mark.parametrize("component", CORE_COMPONENTS, ids=lambda c: f"{c.kind}-{c.name}")
def test_every_core_component_exists(component: Component) -> None:
    assert callable(component.load())
    if component.schema:
        assert component.load_schema().model_config["extra"] == "forbid"


@pytest.mark.parametrize("target", ["", "os", "os:", ":path", "os:nothing"])
def test_bad_targets(target: str) -> None:
    with pytest.raises(UsageError, match="bad target"):
        load_target(target)


def test_did_you_mean() -> None:
    assert did_you_mean("zzz", ["a", "b"]) == "known: a, b"
    assert did_you_mean("zzz", []) == ""
    assert load_target("os:path.join")("a", "b") == "a/b"
