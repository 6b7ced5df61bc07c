"""What a run records of itself: settings, git, packages."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from apt.training.config import parse_config
from apt.training.record import git_state, run_record


def git(directory: Path, *words: str) -> str:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PATH": os.environ["PATH"]}
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    ran = subprocess.run(["git", *who, *words], cwd=directory, env=own, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one commit."""
    path = tmp_path / "仓库"
    path.mkdir()
    git(path, "init", "-q")
    (path / "a.txt").write_text("1", encoding="utf-8")
    git(path, "add", "a.txt")
    git(path, "commit", "-q", "-m", "first")
    monkeypatch.chdir(path)
    return path


def test_git_state_tells_commit_and_changes(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "new.txt").write_text("not kept by git", encoding="utf-8")
    assert git_state() == {"commit": commit, "dirty": False}
    (repository / "a.txt").write_text("2", encoding="utf-8")
    assert git_state() == {"commit": commit, "dirty": True}


def test_a_repository_cannot_have_programs_started(repository: Path) -> None:
    told = repository / "told"
    git(repository, "config", "core.fsmonitor", f"touch {told}; false")
    assert git_state() is not None
    assert not told.exists()


def test_without_a_repository_or_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_state() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None


def test_the_record_is_json_and_holds_the_config_by_its_hash(repository: Path) -> None:
    config = parse_config({"train": {"steps": 3}})
    record = json.loads(json.dumps(run_record(config)))
    assert parse_config(record["config"]) == config
    assert record["config_sha256"] == config.digest()
    assert record["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert {"torch", "transformers", "accelerate", "apt-model"} <= set(record["packages"])
