"""Resuming: exact after a kill anywhere, from states that are whole only, refused for another run."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import killed
from training_helpers import small_model, small_rows
from transformers import TrainerCallback

from apt.console.errors import CannotWriteError, ExitCode, UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training import callbacks
from apt.training.components import build_loss
from apt.training.config import parse_config
from apt.training.contract import Resources
from apt.training.forward import last_hidden
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.run_directory import alone_in
from apt.training.runner import run
from apt.training.saved_states import is_whole, state_folder

STEPS = 8


class Projected(torch.nn.Module):
    """Cross-entropy, and the distance of a projection of the states to noise: a loss with parameters of its own."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: Any, resources: Resources) -> None:
        super().__init__()
        self._inner = build_loss(CrossEntropyOptions(), resources=resources)
        self.projection = torch.nn.Linear(resources.model.config.hidden_size, 4)

    def __call__(self, model: Any, batch: Any, *, rng: torch.Generator, step: int) -> Any:
        out = self._inner(model, batch, rng=rng, step=step)
        projected = self.projection(last_hidden(model, batch))
        wanted = torch.randn(projected.shape, generator=rng)
        return out._replace(loss_sum=out.loss_sum + 0.1 * (projected - wanted).square().sum())


REGISTRY = Registry(
    [*CORE_COMPONENTS, Component("loss", "projected", f"{__name__}:Projected", "apt.training.sections:Section")]
)


class At(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event: str, step: int, action: Callable[[], object]) -> None:
        def wanted(args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == step:
                action()

        setattr(self, event, wanted)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def long_run(run_dir: Path, *watchers: TrainerCallback, optimizer: str = "muon", **train: Any) -> Any:
    """A run with everything that a resume must restore; logs and evaluations are out of step."""
    model = small_model(attention_dropout=0.2)
    settings: dict[str, Any] = {
        "steps": STEPS, "batch_rows": 4, "grad_accum": 2, "eval_every": 2, "log_every": 3, "eval_rows": 4,
        "precision": "auto" if optimizer == "muon" else "fp32", "optimizer": {"name": optimizer},
        "loss": {"name": "projected"},
        "guards": {"spike_factor": 50.0, "spike_window": 3}, **train,
    }  # fmt: skip
    config = parse_config({"train": settings}, REGISTRY)
    logged: list[Any] = []
    log = At("on_train_end", STEPS, lambda: None)
    log.on_train_end = lambda args, state, control, **rest: logged.extend(state.log_history)  # type: ignore[method-assign]
    result = run(config, model, small_rows(), run_dir=run_dir, registry=REGISTRY, callbacks=(*watchers, log))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    fixed = [{k: v for k, v in entry.items() if "/" in k and not k.startswith("perf/")} for entry in logged]
    return weights, fixed, result


def assert_equal_runs(first: Any, second: Any) -> None:
    for name, tensor in first[0].items():
        assert torch.equal(tensor, second[0][name]), name
    assert first[1] == second[1]
    assert first[2].curve == second[2].curve and first[2].best_step == second[2].best_step
    assert first[2].tokens == second[2].tokens


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The outcome of a run that nothing disturbs."""
    made: dict[str, Any] = {}

    def outcome(optimizer: str) -> Any:
        if optimizer not in made:
            made[optimizer] = long_run(tmp_path_factory.mktemp("whole") / optimizer, optimizer=optimizer)
        return made[optimizer]

    return outcome


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, whole: Callable[[str], Any], optimizer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for event, step in (
        ("on_train_begin", 0),
        ("on_substep_end", 0),
        ("on_step_end", 2),
        ("on_pre_optimizer_step", 3),
        ("on_evaluate", 4),
        ("on_step_begin", 5),
        ("on_substep_end", 5),
        ("on_save", 6),
        ("on_step_end", 7),
    ):
        killed(lambda event=event, step=step: long_run(tmp_path, At(event, step, kill_self), optimizer=optimizer))
    assert state_folder(tmp_path, 6).exists() and not state_folder(tmp_path, 8).exists()
    capfd.readouterr()
    last = long_run(tmp_path, optimizer=optimizer)
    assert f"going on after step 6 of {STEPS}" in capfd.readouterr().err
    assert_equal_runs(whole(optimizer), last)


@pytest.mark.parametrize("moment", ["seal", "prune"])
def test_a_kill_while_a_state_is_saved(
    tmp_path: Path, whole: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def save_and_die(path: Path) -> None:
        if state_folder(tmp_path, 6).exists():
            kill_self()
        original(path)

    original = getattr(callbacks, moment)
    with monkeypatch.context() as patched:
        patched.setattr(callbacks, moment, save_and_die)
        killed(lambda: long_run(tmp_path))
    assert is_whole(state_folder(tmp_path, 6)) == (moment == "prune")
    assert_equal_runs(whole("muon"), long_run(tmp_path))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the states of steps 4 and 6."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    killed(lambda: long_run(run_dir, At("on_step_begin", 7, kill_self)))
    assert all(is_whole(state_folder(run_dir, step)) for step in (4, 6))
    return run_dir


FILES = [
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "place.json",
    "run_record.json", "digests.json",
]  # fmt: skip


def test_these_are_the_files_of_a_state(interrupted: Path) -> None:
    assert sorted(p.name for p in state_folder(interrupted, 6).iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_state_is_passed_over(
    tmp_path: Path, interrupted: Path, whole: Callable[[str], Any], name: str, damage: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(interrupted, run_dir)
    path = state_folder(run_dir, 6) / name
    held = path.read_bytes()
    if damage == "cut":
        path.write_bytes(held[: len(held) // 2])
    elif damage == "gone":
        path.unlink()
    else:
        middle = len(held) // 2
        path.write_bytes(held[:middle] + bytes([held[middle] ^ 1]) + held[middle + 1 :])
    begun: list[int] = []
    watcher = At("on_epoch_begin", 4, lambda: begun.append(4))
    assert_equal_runs(whole("muon"), long_run(run_dir, watcher))
    assert begun == [4]


def test_with_no_whole_state_the_run_begins_anew(
    tmp_path: Path, interrupted: Path, whole: Callable[[str], Any]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(interrupted, run_dir)
    for name in FILES:
        for state in run_dir.glob("checkpoint-*"):
            (state / name).write_bytes(b"")
    assert_equal_runs(whole("muon"), long_run(run_dir))


def test_a_run_directory_can_be_moved(tmp_path: Path, interrupted: Path, whole: Callable[[str], Any]) -> None:
    shutil.copytree(interrupted, tmp_path / "elsewhere")
    assert_equal_runs(whole("muon"), long_run(tmp_path / "elsewhere"))


def test_a_full_disk_is_one_line_and_can_be_gone_on_from(tmp_path: Path, whole: Callable[[str], Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(CannotWriteError, match="cannot write the run's state") as caught:
            long_run(tmp_path, At("on_step_begin", 5, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code is ExitCode.CANNOT_WRITE and "free space" in caught.value.hint
    assert_equal_runs(whole("muon"), long_run(tmp_path))


def test_torch_does_not_say_why_it_cannot_write(tmp_path: Path) -> None:
    from apt.training.run_directory import told_when_full

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CannotWriteError, match="cannot write the run's state"), told_when_full(tmp_path):
            torch.save(torch.zeros(10_000), tmp_path / "big.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(RuntimeError, match="another"), told_when_full(tmp_path):
        raise RuntimeError("another fault stays what it is")


def test_a_run_directory_that_is_in_use_is_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UsageError, match="another run is at work"):
        long_run(tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_changed_config_is_refused_unless_that_may_change(tmp_path: Path) -> None:
    long_run(tmp_path, steps=4, scheduler={"name": "constant"})
    with pytest.raises(UsageError, match=r"another config: train\.steps"):
        long_run(tmp_path, steps=STEPS, scheduler={"name": "constant"})


def test_what_may_change_may_be_named(tmp_path: Path) -> None:
    def some(steps: int, run_dir: Path, **more: Any) -> Any:
        model = small_model()
        train = {"steps": steps, "batch_rows": 4, "eval_every": 2, "eval_rows": 4, "precision": "fp32",
                 "scheduler": {"name": "constant"}}  # fmt: skip
        result = run(parse_config({"train": train}), model, small_rows(), run_dir=run_dir, **more)
        return {n: p.detach().clone() for n, p in model.named_parameters()}, result

    some(4, tmp_path / "a")
    longer, result = some(8, tmp_path / "a", may_change=("train.steps",))
    straight, _ = some(8, tmp_path / "b")
    assert result.steps == 8
    assert all(torch.equal(longer[name], straight[name]) for name in straight)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, whole: Callable[[str], Any]) -> None:
    long_run(tmp_path)
    steps: list[int] = []
    again = long_run(tmp_path, At("on_step_begin", 0, lambda: steps.append(0)))
    assert_equal_runs(whole("muon"), again)
    assert not steps


def test_states_that_nothing_needs_are_removed(tmp_path: Path) -> None:
    _, _, result = long_run(tmp_path)
    kept = {int(p.name.rpartition("-")[2]) for p in tmp_path.glob("checkpoint-*")}
    assert kept == {6, 8, result.best_step or 8}
