"""What a process was started with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from apt.console.errors import ExitCode, UsageError
from apt.training.environment import check_alone


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone("prune")
    monkeypatch.setenv("WORLD_SIZE", "2")  # a scheduler's, not torchrun's
    check_alone("prune")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UsageError, match="torchrun started 2 processes, and prune is done by one"):
        check_alone("prune")
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_alone("prune")


@pytest.mark.parametrize("call", [("prune", "tiny"), ("distill", "--teacher", "tiny", "--student", "tiny")])
def test_what_one_process_does_is_refused_under_torchrun(
    call: tuple[str, ...], cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = cli(*call, "-o", tmp_path / "out")
    assert ran.code == ExitCode.USAGE and "only apt_model train goes with torchrun" in ran.err
    assert not list(tmp_path.glob("*out*"))
