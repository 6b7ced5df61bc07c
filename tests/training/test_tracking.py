"""Trackers: what reaches them, how they are chosen, that they print nothing, leave nothing, and break nothing."""

import hashlib
import json
import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from kills import killed
from training_helpers import small_model, small_rows
from transformers import TrainerCallback

from apt.console.errors import MissingDependencyError, UsageError
from apt.training.config import TrackingConfig, TrainConfig, parse_config
from apt.training.record import git_state, run_record
from apt.training.runner import run
from apt.training.tracking import choice
from apt.training.tracking.choice import check_tracking, wandb_mode_of
from apt.training.tracking.contract import Tracking
from apt.training.tracking.weights_and_biases import has_key


@pytest.fixture(autouse=True)
def no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    (tmp_path / "home").mkdir()


def tracked_config(**tracking: Any) -> TrainConfig:
    train = {
        "steps": 6, "batch_rows": 4, "eval_every": 2, "eval_rows": 4, "precision": "fp32",
        "optimizer": {"name": "adamw", "lr": 0.003},
    }  # fmt: skip
    return parse_config({"train": train, "tracking": tracking})


class Kill(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def run_killed(config: TrainConfig, run_dir: Path) -> None:
    killed(lambda: run(config, small_model(), small_rows(), run_dir=run_dir, callbacks=(Kill(),)))


def history_of(run_dir: Path) -> dict[int, dict[str, float]]:
    """What the run logged, by step, from its last saved state."""
    state = json.loads((run_dir / "checkpoint-6" / "trainer_state.json").read_text())
    found: dict[int, dict[str, float]] = {}
    for entry in state["log_history"]:
        found.setdefault(entry["step"], {}).update({k: v for k, v in entry.items() if "/" in k})
    return found


# The record


def test_the_record_is_in_the_run_directory_and_in_every_state(tmp_path: Path) -> None:
    config = tracked_config(wandb_mode="disabled")
    run(config, small_model(), small_rows(), run_dir=tmp_path)
    record = json.loads((tmp_path / "run_record.json").read_text())
    assert record["config"] == config.resolved() and record["config_sha256"] == config.digest()
    canonical = json.dumps(record["config"], sort_keys=True).encode()
    assert record["config_sha256"] == hashlib.sha256(canonical).hexdigest()
    assert record["packages"]["torch"] and record["python"].startswith("3.") and record["platform"]
    assert record["peak_flops_per_s"] > 1e6
    states = list(tmp_path.glob("checkpoint-*"))
    assert states and all(json.loads((s / "run_record.json").read_text()) == record for s in states)
    again = yaml.safe_load((tmp_path / "config.resolved.yaml").read_text())
    assert parse_config(again) == config


def test_the_state_of_the_code_is_that_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_state() is None and run_record(tracked_config())["git"] is None
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "somebody")
    import subprocess

    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run(["git", *words], check=True)
    state = git_state()
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state() == {**state, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None


# The choice


def only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(choice, "_installed", lambda package: package in packages)


def test_without_a_mode_w_and_b_is_used_as_well_as_it_can_be(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch)
    assert wandb_mode_of(TrackingConfig()) == "disabled"
    assert capfd.readouterr().err.splitlines() == ["the package wandb is not installed: nothing goes to W&B"]
    only(monkeypatch, "wandb")
    assert wandb_mode_of(TrackingConfig()) == "offline"
    assert capfd.readouterr().err.count("\n") == 1
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    assert wandb_mode_of(TrackingConfig()) == "online"
    assert capfd.readouterr() == ("", "")
    assert wandb_mode_of(TrackingConfig(wandb_mode="offline")) == "offline"


def test_what_is_asked_for_by_name_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    for asked in ({"wandb_mode": "offline"}, {"wandb_mode": "online"}, {"tensorboard": True}):
        with pytest.raises(MissingDependencyError, match="not installed"):
            check_tracking(TrackingConfig(**asked))
    for fine in (None, TrackingConfig(), TrackingConfig(wandb_mode="disabled")):
        check_tracking(fine)
    only(monkeypatch, "wandb")
    with pytest.raises(UsageError, match="needs a W&B key"):
        check_tracking(TrackingConfig(wandb_mode="online"))


def test_a_missing_tracker_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    with pytest.raises(MissingDependencyError):
        run(tracked_config(wandb_mode="offline"), small_model(), small_rows(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_key_is_found_where_w_and_b_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    assert not has_key()
    (home / ".netrc").write_text("machine other.host\n  login user\n  password x\n")
    (home / ".netrc").chmod(0o600)
    assert not has_key()
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password abc\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    named = tmp_path / "netrc"
    named.write_text("machine wandb.example.org\n  login user\n  password abc\n")
    named.chmod(0o600)
    monkeypatch.setenv("NETRC", str(named))
    assert has_key()
    named.write_text("no netrc at all")
    assert not has_key()


# Trackers that fail


class Broken:
    title = "Broken"

    def __init__(self, moment: str) -> None:
        self._moment = moment
        self._fail("make")

    def log(self, step: int, figures: Any) -> None:
        self._fail("log")

    def close(self, *, failed: bool) -> None:
        self._fail("close")

    def _fail(self, moment: str) -> None:
        if moment == self._moment:
            raise ConnectionError("the server\nis away")


@pytest.mark.parametrize("moment", ["make", "log", "close"])
def test_a_tracker_that_fails_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], moment: str
) -> None:
    def add(callback: Tracking, *rest: Any) -> None:
        callback.add("Broken", lambda: Broken(moment))

    monkeypatch.setattr(choice, "_add", add)
    result = run(tracked_config(), small_model(), small_rows(), run_dir=tmp_path)
    assert result.steps == 6
    told = capfd.readouterr().err.splitlines()
    expected = "warning: Broken does not work, and the run goes on without it: ConnectionError: the server is away"
    assert told == [expected]


# TensorBoard


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    # Files are read in the order of their names: two of one second stand in the order of their processes' numbers.
    return {tag: sorted((e.step, e.value) for e in read.Scalars(tag)) for tag in read.Tags()["scalars"]}


def test_tensorboard_has_every_figure_once_after_a_kill(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    config = tracked_config(tensorboard=True, wandb_mode="disabled")
    run_killed(config, tmp_path)
    before = scalars(tmp_path)
    assert [step for step, _ in before["train/loss"]] == [2, 4]
    threads = set(threading.enumerate())
    run(config, small_model(), small_rows(), run_dir=tmp_path)
    assert set(threading.enumerate()) == threads
    found = scalars(tmp_path)
    logged = history_of(tmp_path)
    for name in {name for figures in logged.values() for name in figures}:
        expected = [(step, figures[name]) for step, figures in sorted(logged.items()) if name in figures]
        assert [step for step, _ in found[name]] == [step for step, _ in expected], name
        assert [value for _, value in found[name]] == pytest.approx([v for _, v in expected], rel=1e-6), name
    assert capfd.readouterr() == ("", f"going on after step 4 of 6, from {tmp_path / 'checkpoint-4'}\n")


# W&B


def records(path: Path) -> Iterator[Any]:
    """Read a W&B file: LevelDB's log format (blocks of 32 KiB, records in fragments) after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, held = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last fragment
            record = Record()
            record.ParseFromString(held)
            held = b""
            yield record


def wandb_figures(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """The config, and the figures by step."""
    config: dict[str, Any] = {}
    figures: dict[int, dict[str, float]] = {}
    for record in records(path):
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = record.history.step.num
            assert step not in figures, "a step is recorded twice"
            figures[step] = {k: v for k, v in items.items() if "/" in k}
    return config, figures


def test_w_and_b_offline_files_hold_config_and_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    run_dir = tmp_path / "run"
    config = tracked_config(wandb_mode="offline", wandb_project="project", run_name="名前")
    run_killed(config, run_dir)
    run_id = json.loads((run_dir / "wandb_run.json").read_text())["id"]
    threads, processes = set(threading.enumerate()), set(psutil.Process().children(recursive=True))
    run(config, small_model(), small_rows(), run_dir=run_dir)
    assert set(threading.enumerate()) == threads
    assert set(psutil.Process().children(recursive=True)) <= processes
    assert capfd.readouterr() == ("", f"going on after step 4 of 6, from {run_dir / 'checkpoint-4'}\n")
    assert json.loads((run_dir / "wandb_run.json").read_text())["id"] == run_id
    (path,) = run_dir.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    found, figures = wandb_figures(path)
    record = json.loads((run_dir / "run_record.json").read_text())
    assert {name: found[name] for name in record} == record
    expected = history_of(run_dir)
    assert {s: f for s, f in figures.items() if f} == {s: pytest.approx(f) for s, f in expected.items() if f}
    names = [r.run.display_name for r in records(path) if r.WhichOneof("record_type") == "run"]
    assert names and set(names) == {"名前"}


def test_disabled_starts_nothing(tmp_path: Path) -> None:
    run(tracked_config(wandb_mode="disabled"), small_model(), small_rows(), run_dir=tmp_path)
    assert not (tmp_path / "wandb").exists() and not (tmp_path / "tensorboard").exists()
