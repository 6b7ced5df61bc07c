"""The sample plugins: copied into the plugin directory, each gives what it says it shows; the others are unharmed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt import events
from apt.plugins import host
from apt.plugins.declare import describe, load_class
from apt.plugins.discovery import Watch, find
from apt.training.config import parse_config

EXAMPLES = Path(__file__).parents[2] / "apt" / "plugins" / "community" / "examples"
ALL = ("operation_log", "polynomial", "raises", "too_new")


@pytest.fixture
def copied(apt_home: Path) -> Path:
    """All of them, in the plugin directory."""
    (apt_home / "plugins").mkdir(parents=True)
    for name in ALL:
        shutil.copy(EXAMPLES / f"{name}.py", apt_home / "plugins")
    return apt_home


def listed(cli: Callable[..., Any]) -> dict[str, Any]:
    return {p["name"]: p for p in json.loads(cli("plugin", "list", "--json").out)["plugins"]}


def test_each_says_what_it_shows() -> None:
    assert sorted(p.stem for p in EXAMPLES.glob("*.py")) == list(ALL)
    for name in ALL:
        assert (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").startswith('"""Shows ')


def test_statuses_before_and_after_use(copied: Path, cli: Callable[..., Any]) -> None:
    before = listed(cli)
    assert {before[n]["status"] for n in ("polynomial", "operation-log", "raises")} == {"untried"}
    assert before["too-new"]["status"] == "broken"
    assert before["too-new"]["reason"] == "needs plugin interface 99; this apt_model has 1"
    ran = cli("raises")
    assert (ran.code, ran.out) == (1, "")
    quarantine = "plugin raises is in quarantine: KeyError: 'large' (mend it with: apt_model plugin try raises)"
    assert f"error: {quarantine}" in ran.err
    ran = cli("too-new")
    assert (ran.code, ran.out) == (1, "")
    assert "plugin too-new cannot be loaded: needs plugin interface 99" in ran.err
    assert cli("list").code == 0
    after = listed(cli)
    assert (after["raises"]["status"], after["raises"]["reason"]) == ("quarantined", "KeyError: 'large'")
    assert after["operation-log"]["status"] == "ready"  # its hook was called
    assert after["polynomial"]["status"] == "untried"  # nobody has used it
    assert "Not usable:" in cli("--help").out


def test_others_are_unharmed(apt_home: Path, cli: Callable[..., Any]) -> None:
    calls = (("info", "tiny"), ("size", "tiny", "--json"), ("list",), ("ollama", "--help"), ("--version",))
    before = [cli(*words) for words in calls]
    (apt_home / "plugins").mkdir(parents=True)
    for name in ALL:
        shutil.copy(EXAMPLES / f"{name}.py", apt_home / "plugins")
    assert [cli(*words) for words in calls] == before
    assert cli("raises").code == 1
    assert [cli(*words) for words in calls] == before


def test_log_tells_operations_and_their_errors(copied: Path, cli: Callable[..., Any]) -> None:
    assert cli("size", "tiny").code == 0
    assert cli("size", "没有").code == 3
    events.announce("checkpoint_written", path=copied / "模型", operation="prune", metrics={})
    log = (copied / "operations.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    assert [(e["event"], e["operation"]) for e in lines] == [
        ("operation", "size"),
        ("operation", "size"),
        ("checkpoint", "prune"),
    ]
    assert lines[0]["error"] is None
    assert lines[1]["error"].startswith("NotFoundError: ")
    assert lines[2]["path"].endswith("模型")
    assert "没有" in log


def test_schedule_is_chosen_by_name(copied: Path) -> None:
    host.refresh()
    registry = host.registry()
    section = {"name": "polynomial", "power": 1.0, "final_share": 0.5}
    config = parse_config({"train": {"steps": 4, "scheduler": section}}, registry)
    schedule = registry.get("scheduler", "polynomial").load()
    assert [schedule(step, 4, config.train.scheduler) for step in range(5)] == [1.0, 0.875, 0.75, 0.625, 0.5]


def test_static_facts_are_what_the_class_registers(copied: Path) -> None:
    foreign = {f.folder: f for f in find(Watch()) if f.foreign}
    assert sorted(foreign) == list(ALL)
    for name in ("operation_log", "polynomial"):
        assert foreign[name].fault == ""
        registered = describe(load_class(foreign[name].target))
        assert foreign[name].facts == {field: registered[field] for field in foreign[name].facts}
        assert {"name", "version", "author", "description", "class", "hooks", "components"} <= set(foreign[name].facts)


def test_broken_one_can_be_disabled(copied: Path, cli: Callable[..., Any]) -> None:
    assert "\n  too-new " in cli("--help").out
    assert cli("plugin", "disable", "too-new").code == 0
    found = listed(cli)["too-new"]
    assert (found["status"], found["mend"]) == ("disabled", "apt_model plugin enable too-new")
    assert "\n  too-new " not in cli("--help").out
    assert cli("plugin", "enable", "too-new").code == 0
    assert listed(cli)["too-new"]["status"] == "broken"
