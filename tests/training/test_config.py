"""Configs: defaults, components by name, refusals that say where."""

from typing import Any

import pytest

from apt.console.errors import UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.components import build_loss
from apt.training.config import parse_config
from apt.training.sections import Section


def test_defaults_are_filled_in_and_resolved_configs_parse_to_themselves() -> None:
    config = parse_config({"train": {"steps": 5}})
    resolved = config.resolved()
    assert resolved["train"]["loss"] == {"name": "ce", "label_smoothing": 0.0, "z_loss": 0.0}
    assert resolved["train"]["scheduler"]["name"] == "cosine"
    assert parse_config(resolved) == config
    assert parse_config(resolved).digest() == config.digest() != parse_config({"train": {"steps": 6}}).digest()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"stepz": 3, "steps": 3}, "train.stepz: unknown key.*did you mean 'steps'"),
        ({}, "train.steps: is missing"),
        ({"steps": 0}, "train.steps: .*greater than or equal to 1"),
        ({"steps": "many"}, "train.steps: .*integer"),
        ({"steps": 3, "precision": "fp8"}, "train.precision"),
        ({"steps": 3, "loss": {"name": "cee"}}, "train.loss.name: no loss is called 'cee'.*did you mean 'ce'"),
        ({"steps": 3, "loss": "ce"}, "train.loss: expected a section with a 'name'"),
        ({"steps": 3, "loss": {"label_smoothing": 0.1}}, "train.loss: expected a section with a 'name'"),
        ({"steps": 3, "loss": {"name": "ce", "label_smoothin": 0.1}}, "did you mean 'label_smoothing'"),
        ({"steps": 3, "loss": {"name": "ce", "label_smoothing": 1.5}}, "train.loss.label_smoothing: .*less than 1"),
        ({"steps": 3, "loss": {"name": "distill", "divergence": "kl"}}, "train.loss.divergence"),
        ({"steps": 3, "loss": {"name": "distill", "alpha": 2}}, "train.loss.alpha"),
        ({"steps": 3, "optimizer": {"name": "adamw", "lr": -1}}, "train.optimizer.lr"),
        ({"steps": 3, "scheduler": {"name": "cosine", "warmup": 1}}, "train.scheduler.warmup: unknown key"),
    ],
)
def test_bad_configs_are_refused_with_their_path(train: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_config({"train": train})
    import re

    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_unknown_top_level_keys_are_refused() -> None:
    with pytest.raises(UsageError, match="trian: unknown key"):
        parse_config({"trian": {}, "train": {"steps": 1}})


def test_a_loss_without_its_teacher_is_refused() -> None:
    config = parse_config({"train": {"steps": 1, "loss": {"name": "distill"}}})
    with pytest.raises(UsageError, match="needs a teacher"):
        build_loss(config.train.loss)


class ForeignOptions(Section):
    strength: float = 1.0


def test_foreign_components_are_chosen_by_name_alone() -> None:
    foreign = Component("loss", "foreign", f"{__name__}:make", f"{__name__}:ForeignOptions")
    registry = Registry([*CORE_COMPONENTS, foreign])
    config = parse_config({"train": {"steps": 1, "loss": {"name": "foreign", "strength": 2.0}}}, registry)
    assert config.resolved()["train"]["loss"] == {"name": "foreign", "strength": 2.0}
    assert build_loss(config.train.loss, registry) == 2.0


def make(options: ForeignOptions, resources: Any) -> Any:
    return options.strength


make.needs = frozenset()  # type: ignore[attr-defined]
