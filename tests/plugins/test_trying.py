"""Trials on demand: their verdict, their cost, and what needs none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.console.errors import NotFoundError, UsageError
from apt.plugins import host, trying

Make = Callable[..., Any]


def test_verdicts_are_shown_and_kept(dropin: Make, plugin_source: Make) -> None:
    dropin("good.py", plugin_source("good"))
    dropin("bad.py", plugin_source("bad", top="raise ValueError('no')"))
    result = trying.attempt(["good-command", "bad", "ollama"])
    good, bad, builtin = result.trials
    assert (good.verdict, good.reason, bad.verdict, bad.reason) == ("passed", "", "failed", "ValueError: no")
    assert good.import_seconds is not None and good.import_bytes is not None
    assert (builtin.verdict, builtin.reason) == ("not needed", "it is part of apt_model")
    assert not result.passed
    assert {p.name: p.status for p in host.load().plugins if p.foreign} == {"good": "ready", "bad": "quarantined"}


def test_seconds_are_the_limit(dropin: Make, plugin_source: Make) -> None:
    dropin("slow.py", plugin_source("slow", top="import time; time.sleep(600)"))
    (trial,) = trying.attempt(["slow"], seconds=0.5).trials
    assert (trial.verdict, trial.reason) == (
        "failed",
        "importing it took longer than 0.5 s; plugin try --seconds gives it more",
    )


def test_what_no_trial_can_mend_is_told_without_one(
    dropin: Make, plugin_source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apt.plugins.trial.attempt", None)
    dropin("a.py", plugin_source("a"))
    dropin("b.py", plugin_source("a"))
    dropin("c.py", plugin_source("c", attributes="    required_dependencies = ['no-such-library']"))
    dropin("d.py", plugin_source("d")).chmod(0o666)
    trials = {t.plugin: t for t in trying.attempt(["a@b", "c", "d"]).trials}
    assert {t.verdict for t in trials.values()} == {"failed"}
    assert "of that name comes first" in trials["a@b"].reason
    assert trials["c"].mend == "apt_model plugin install c"
    assert "can be written by others" in trials["d"].reason


def test_an_unknown_name_tries_none(dropin: Make, plugin_source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt.plugins.trial.attempt", None)
    dropin("a.py", plugin_source("a"))
    with pytest.raises(NotFoundError):
        trying.attempt(["a", "nonsense"])
    assert Path(host.load().plugin("a").root).is_file()


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_time_that_is_no_number_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="which is no time"):
        trying.attempt([], seconds=seconds)
