"""Foreign schemas: whatever they do, it is a fault of the section that names them, in one line."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from apt.console.errors import BadInputError, UsageError
from apt.document import DocumentError, parse
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.config import TrainConfig, parse_config
from apt.training.sections import LossSection, Section
from apt.training.validation import check


class Raising(Section):
    strength: float = 1.0
    how: str = "key"

    @model_validator(mode="after")
    def _fail(self) -> Self:
        raise {"key": KeyError("strength"), "ours": BadInputError("strength: too weak"), "exit": SystemExit(3)}[
            self.how
        ]


class RaisingBefore(Section):
    inner: LossSection | None = None
    strength: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _look(cls, values: Any) -> Any:
        inner = values.get("inner")
        if inner is not None and inner.name != "ce":  # a section that was checked already
            raise ValueError("inner is not to be anything but ce")
        return values


class Multiline(Section):
    strength: float = 1.0

    @field_validator("strength")
    @classmethod
    def _fail(cls, value: float) -> float:
        raise ValueError("too\nweak\r\n")


class NoSection(BaseModel):
    strength: float = 1.0


class Wide(Section):
    path: str | list[str] = "a"
    some: dict[str, LossSection] = Field(default_factory=dict)
    others: list[LossSection] = Field(default_factory=list)


NOT_A_CLASS = 3


def _registry(schema: str, plugin: str = "greet") -> Registry:
    return Registry([*CORE_COMPONENTS, Component("loss", "foreign", "nowhere:Loss", schema, plugin=plugin)])


def _faults(options: str, schema: str) -> list[str]:
    text = f"train:\n  steps: 1\n  loss:\n    name: foreign\n{options}"
    with pytest.raises(DocumentError) as caught:
        check(TrainConfig, parse(text, "run.yaml"), _registry(schema))
    assert all("\n" not in p.message for p in caught.value.problems)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("key", "run.yaml:3: train.loss: cannot be checked: KeyError: 'strength'"),
        ("ours", "run.yaml:3: train.loss: cannot be checked: strength: too weak"),
        ("exit", "run.yaml:3: train.loss: cannot be checked: SystemExit: 3"),
    ],
)
def test_a_validator_that_raises_is_a_fault_of_its_section(how: str, told: str) -> None:
    assert _faults(f"    how: {how}\n", f"{__name__}:Raising") == [told]


def test_a_validator_of_many_lines_is_told_in_one() -> None:
    assert _faults("    strength: 2.0\n", f"{__name__}:Multiline") == ["run.yaml:5: train.loss.strength: too weak"]


def test_a_validator_of_all_that_is_given_sees_checked_sections() -> None:
    schema = f"{__name__}:RaisingBefore"
    options = "    inner:\n      name: distill\n"
    assert _faults(options, schema) == ["run.yaml:5: train.loss.inner: inner is not to be anything but ce"]
    text = f"train:\n  steps: 1\n  loss:\n    name: foreign\n{options}".replace("distill", "ce")
    config = check(TrainConfig, parse(text, "run.yaml"), _registry(schema))
    assert config.train.loss.inner.name == "ce"
    assert "lots" in _faults("    inner: {name: ce}\n    strength: lots\n", schema)[0]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('two\\nlines')", "cannot be imported: RuntimeError: two lines"),
        ("import sys; sys.exit(7)", "cannot be imported: SystemExit: 7"),
        ("import no_such_package_at_all", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("Other = 1", "has no 'Options'"),
        ("Options = 3", "has a schema that is no Section"),
    ],
)
def test_a_schema_that_cannot_be_imported_is_one_clear_line(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_schema.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_schema", raising=False)
    (fault,) = _faults("", "foreign_schema:Options")
    assert fault.startswith("run.yaml:4: train.loss.name: ")
    assert told in fault
    if "imported" in told:
        assert "the loss 'foreign' of the plugin 'greet'" in fault
    sys.modules.pop("foreign_schema", None)


@pytest.mark.parametrize("name", ["NoSection", "NOT_A_CLASS"])
def test_a_schema_that_is_no_section_is_told(name: str) -> None:
    (fault,) = _faults("", f"{__name__}:{name}")
    assert fault.endswith("train.loss.name: the loss 'foreign' of the plugin 'greet' has a schema that is no Section")


def test_a_value_that_fits_no_type_is_one_fault_with_its_place() -> None:
    (fault,) = _faults("    path:\n      a: 1\n", f"{__name__}:Wide")
    assert fault.startswith("run.yaml:5: train.loss.path: should be a valid string, or should be a valid list")


def test_sections_in_lists_and_mappings_are_checked_at_their_places() -> None:
    options = "    some:\n      one: {name: ce, label_smoothin: 0.1}\n    others:\n      - name: cee\n      - 3\n"
    told = _faults(options, f"{__name__}:Wide")
    assert told[0] == "run.yaml:6: train.loss.some.one.label_smoothin: unknown key (did you mean 'label_smoothing'?)"
    assert told[1].startswith("run.yaml:8: train.loss.others.0.name: no loss is called 'cee' (did you mean 'ce'?)")
    assert told[2].startswith("run.yaml:9: train.loss.others.1: expected a section with a 'name'")
    assert len(told) == 3


def test_values_that_only_a_caller_can_make_are_refused_too() -> None:
    from apt.training.config import parse_config

    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    circle: dict[str, Any] = {}
    circle["train"] = circle
    for values, told in (
        ({"train": {"steps": 1, 3: 4}}, "train: a key must be a word, got 3"),
        ({"train": {"steps": 1, ("a", "b"): 4}}, "a key must be a word"),
        ({"train": {"steps": 1, "max_grad_norm": float("nan")}}, "train.max_grad_norm: expected a finite number"),
        ({"train": {"steps": 10**5000}}, "train.steps: the number does not fit"),
        ({"train": {"steps": 1, "loss": deep}}, "nested too deep"),
        (circle, "nested too deep"),
        ({"train": {"steps": object()}}, "train.steps"),
        ({"train": {"steps": 1}, "model": "\ud800"}, "model"),
    ):
        with pytest.raises(UsageError) as caught:
            parse_config(values)  # type: ignore[arg-type]
        assert told in str(caught.value), str(caught.value)


class Quarrelsome(Section):
    """A foreign section whose look at the whole run fails."""

    def contradictions(self, config: Any) -> Iterable[tuple[str, str]]:
        raise KeyError("strength")


def test_a_foreign_section_that_fails_on_the_whole_run_is_a_fault_of_its_own() -> None:
    with pytest.raises(DocumentError, match=r"train\.loss: cannot be checked: KeyError: 'strength'"):
        parse_config({"train": {"steps": 1, "loss": {"name": "foreign"}}}, _registry(f"{__name__}:Quarrelsome"))
