"""Some hundred bad configs: each refused before any weight is read, told by its line and the word that was meant."""

from collections import Counter
from pathlib import Path
from typing import Any

import bad_configs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UsageError
from apt.document import DocumentError
from apt.training.components import core_registry
from apt.training.config import TrainConfig, parse_config
from apt.training.job import TrainOptions, train

REGISTRY = core_registry()

CASES = bad_configs.cases(REGISTRY)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a model may be looked at."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was opened")

    monkeypatch.setattr(Checkpoint, "open", refuse)
    monkeypatch.setattr(Checkpoint, "load", refuse)


def test_there_are_cases_for_all_that_can_be_written() -> None:
    assert len(CASES) >= 200
    kinds = Counter(c.kind for c in REGISTRY)
    assert all(kinds[kind] for kind in bad_configs.PLACES), "a kind of component has no cases"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_with_its_line(case: bad_configs.Case, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(case.text, encoding="utf-8")
    with pytest.raises(DocumentError) as caught:
        train(TrainOptions(config=path, model="tiny", output=tmp_path / "out"), REGISTRY)
    told = [p for p in caught.value.problems if p.message.startswith(f"{case.place}: ") or not case.place]
    assert told, f"{case.text}\nnot told of {case.place}: {[str(p) for p in caught.value.problems]}"
    assert case.line in {p.line for p in told}, f"{case.text}\n{[str(p) for p in told]}"
    assert all(p.file == str(path) for p in caught.value.problems)
    if case.hint:
        assert any(p.hint == f"did you mean {case.hint!r}?" for p in told), [str(p) for p in told]
    assert all("\n" not in str(p) and len(str(p)) < 1000 for p in caught.value.problems)
    assert list(tmp_path.iterdir()) == [path], "something was written"


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "trian: 1\ntrain:\n  steps: many\n  loss: {name: cee}\n  optimizer:\n    name: adamw\n    lr: -1\n    beta: 2\n"
        "tracking: {wandb_mode: of}\n",
        encoding="utf-8",
    )
    with pytest.raises(DocumentError) as caught:
        train(TrainOptions(config=path, model="tiny", output=tmp_path / "out"), REGISTRY)
    assert [p.line for p in caught.value.problems] == [1, 3, 4, 7, 8, 9]


_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["ce", "adamw"])
)
_words = st.sampled_from(
    [
        "name",
        "train",
        "loss",
        "steps",
        "data",
        "guards",
        "optimizer",
        "lr",
        "parts",
        "tasks",
        "path",
        "rewards",
        "teacher",
    ]
)
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words | st.text(max_size=3) | st.integers(), inner),
    max_leaves=12,
)


@given(_trees)
def test_whatever_is_given_is_a_config_or_a_refusal(tree: Any) -> None:
    for values in (tree, {"train": tree}, {"train": {"steps": 1, "loss": tree}}, {"data": {"train": tree}}):
        try:
            config = parse_config(values) if isinstance(values, dict) else None
        except UsageError as error:
            assert "\n" not in error.message
        else:
            assert config is None or parse_config(config.resolved()) == config
            assert config is None or isinstance(config, TrainConfig)


@pytest.mark.parametrize("missing", ["model", "data"])
def test_what_a_run_cannot_do_without_is_told_first(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    data = "" if missing == "data" else "data:\n  train: {name: text, path: embedded}\n"
    path.write_text(f"{data}train:\n  steps: 1\n", encoding="utf-8")
    options = TrainOptions(config=path, model=None if missing == "model" else "tiny", output=tmp_path / "out")
    with pytest.raises(UsageError, match="no model is named" if missing == "model" else "data: is missing"):
        train(options, REGISTRY)


def test_a_teacher_that_is_needed_and_not_named_is_told_first(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "data:\n  train: {name: text, path: embedded}\ntrain:\n  steps: 1\n  loss: {name: distill}\n", encoding="utf-8"
    )
    with pytest.raises(UsageError, match="needs a teacher"):
        train(TrainOptions(config=path, model="tiny", output=tmp_path / "out"), REGISTRY)
