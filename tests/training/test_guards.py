"""Guards: steps that would spoil the model leave no trace or stop the run; early stopping; evaluations that fail."""

import math
import os
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from kills import killed
from pydantic import Field
from training_helpers import small_config, small_model, small_rows
from transformers import TrainerCallback

from apt.console.errors import AptError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.callbacks import has_converged
from apt.training.components import build_loss
from apt.training.config import EarlyStopping, Guards, parse_config
from apt.training.guards import StepGuard
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.runner import run
from apt.training.sections import Section


class FaultyOptions(Section):
    name: Literal["faulty"] = "faulty"
    steps: list[int] = Field(default=[2])
    micro: int = 0
    fault: Literal["nan", "inf", "gradient", "spike"] = "nan"


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * math.nan


class Faulty:
    """Cross-entropy that goes wrong in a chosen micro-batch of chosen steps (counted from 0)."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: FaultyOptions, resources: Any) -> None:
        self._options = options
        self._inner = build_loss(CrossEntropyOptions(), resources=resources)
        self._calls = (-1, 0)

    def __call__(self, model: Any, batch: Any, *, rng: torch.Generator, step: int) -> Any:
        out = self._inner(model, batch, rng=rng, step=step)
        self._calls = (step, self._calls[1] + 1 if self._calls[0] == step else 0)
        if step not in self._options.steps or self._calls[1] != self._options.micro:
            return out
        loss = out.loss_sum
        if self._options.fault == "gradient":
            loss = _NanGradient.apply(loss)
        else:
            loss = loss * {"nan": math.nan, "inf": math.inf, "spike": 100.0}[self._options.fault]
        metrics = {k: type(m)(m.sum * math.nan, m.weight) for k, m in out.metrics.items()}
        return out._replace(loss_sum=loss, metrics=metrics)


REGISTRY = Registry([*CORE_COMPONENTS, Component("loss", "faulty", f"{__name__}:Faulty", f"{__name__}:FaultyOptions")])


def config(loss: dict[str, Any], guards: dict[str, Any], **train: Any) -> Any:
    settings: dict[str, Any] = {
        "steps": 5, "batch_rows": 4, "eval_rows": 4, "eval_every": 5, "precision": "fp32",
        "optimizer": {"name": "adamw", "lr": 0.003}, "loss": {"name": "faulty", **loss}, "guards": guards, **train,
    }  # fmt: skip
    return parse_config({"train": settings}, REGISTRY)


class Snapshots(TrainerCallback):
    """Parameters and the optimizer's state after every step."""

    def __init__(self) -> None:
        self.after: list[tuple[dict[str, Any], list[Any]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        held = rest["optimizer"].state_dict()
        flat = [t.clone() for t in _tensors(held)]
        self.after.append(({n: p.detach().clone() for n, p in rest["model"].named_parameters()}, flat))


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [t for value in values for t in _tensors(value)]


def unchanged(first: Any, second: Any) -> bool:
    same = all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    return same and all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("fault", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("micro", [0, 1])
def test_a_skipped_step_leaves_no_trace(tmp_path: Path, fault: str, micro: int, optimizer: str) -> None:
    seen = Snapshots()
    chosen = config(
        {"fault": fault, "micro": micro}, {"on_non_finite": "skip"}, grad_accum=2, optimizer={"name": optimizer}
    )
    model = small_model()
    result = run(chosen, model, small_rows(), run_dir=tmp_path, registry=REGISTRY, callbacks=(seen,))
    assert result.skipped_steps == 1 and result.steps == 5
    assert [unchanged(a, b) for a, b in zip(seen.after, seen.after[1:], strict=False)] == [False, True, False, False]
    assert len(seen.after[0][1]) > 0
    assert all(p.isfinite().all() for p in model.parameters())
    # What is logged of the interval is of the steps that were taken.
    assert math.isfinite(result.metrics["train/loss"]) and math.isfinite(result.metrics["loss/ce"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "the loss is not a finite"), ("inf", "the loss is not"), ("gradient", "the gradient's norm is not")],
)
def test_a_fault_stops_the_run_where_it_should(tmp_path: Path, fault: str, message: str) -> None:
    chosen = config({"fault": fault}, {"on_non_finite": "stop"})
    with pytest.raises(AptError, match=f"{message}.* at step 3"):
        run(chosen, small_model(), small_rows(), run_dir=tmp_path, registry=REGISTRY)


def test_spikes_are_skipped_or_stop(tmp_path: Path) -> None:
    guards = {"spike_factor": 3.0, "spike_window": 2}
    seen = Snapshots()
    chosen = config({"fault": "spike", "steps": [3]}, guards)
    result = run(chosen, small_model(), small_rows(), run_dir=tmp_path / "a", registry=REGISTRY, callbacks=(seen,))
    assert result.skipped_steps == 1 and unchanged(seen.after[2], seen.after[3])
    with pytest.raises(AptError, match="over 3 times the mean of the last steps at step 4"):
        chosen = config({"fault": "spike", "steps": [3]}, {**guards, "on_spike": "stop"})
        run(chosen, small_model(), small_rows(), run_dir=tmp_path / "b", registry=REGISTRY)
    # Before the window is full there is nothing to compare with.
    early = config({"fault": "spike", "steps": [1]}, guards)
    assert run(early, small_model(), small_rows(), run_dir=tmp_path / "c", registry=REGISTRY).skipped_steps == 0


def test_too_many_skipped_steps_stop_the_run(tmp_path: Path) -> None:
    chosen = config({"steps": [0, 1, 2]}, {"on_non_finite": "skip", "most_skipped": 2})
    with pytest.raises(AptError, match="at step 3, and 2 steps were skipped before"):
        run(chosen, small_model(), small_rows(), run_dir=tmp_path, registry=REGISTRY)


def test_a_spike_is_no_part_of_the_mean() -> None:
    guard = StepGuard(Guards(spike_factor=2.0, spike_window=2))
    assert [guard.check(i, loss, 1.0) for i, loss in enumerate([1.0, 1.0, 5.0, 2.5, 1.5, 2.0])] == [
        True, True, False, False, True, True,
    ]  # fmt: skip
    assert guard.skipped == 2
    resumed = StepGuard(Guards(spike_factor=2.0, spike_window=2))
    resumed.load_state_dict(guard.state_dict())
    assert not resumed.check(6, 4.0, 1.0) and resumed.skipped == 3


def test_what_a_guard_remembers_is_saved_with_the_run(tmp_path: Path) -> None:
    """The window is filled before the kill, the spike comes after it."""
    chosen = config({"fault": "spike", "steps": [3]}, {"spike_factor": 3.0, "spike_window": 2}, eval_every=1)

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    killed(lambda: run(chosen, small_model(), small_rows(), run_dir=tmp_path, registry=REGISTRY, callbacks=(Kill(),)))
    resumed = run(chosen, small_model(), small_rows(), run_dir=tmp_path, registry=REGISTRY)
    straight = run(chosen, small_model(), small_rows(), run_dir=tmp_path / "straight", registry=REGISTRY)
    assert resumed.skipped_steps == straight.skipped_steps == 1
    assert resumed.curve == straight.curve


def test_early_stopping_counts_evaluations_without_improvement() -> None:
    def log(*losses: float) -> list[dict[str, float]]:
        return [{"train/loss": 9.0}, *({"eval/rows/loss": loss} for loss in losses)]

    options = EarlyStopping(patience=2, min_delta=0.1)
    assert not has_converged(log(3.0, 2.0, 1.95), options)
    assert has_converged(log(3.0, 2.0, 1.95, 1.91), options)
    assert not has_converged(log(3.0, 2.0, 1.95, 1.8), options)
    assert has_converged(log(3.0, math.nan, math.nan), options)
    assert not has_converged([], options)


def test_a_run_that_stopped_early_is_not_gone_on_with(tmp_path: Path) -> None:
    ruin = small_config(steps=20, eval_every=2, early_stopping={"patience": 2}, optimizer={"name": "adamw", "lr": 0.5})

    class KillAfterTheLastSave(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    killed(lambda: run(ruin, small_model(), small_rows(), run_dir=tmp_path / "a", callbacks=(KillAfterTheLastSave(),)))
    results = []
    for folder in ("a", "b", "b"):
        model = small_model()
        result = run(ruin, model, small_rows(), run_dir=tmp_path / folder)
        results.append((result.curve, result.best_step, result.steps, [p.detach().sum() for p in model.parameters()]))
    assert results[0] == results[1] == results[2]
    assert results[0][2] < 20 and len(results[0][0]) == results[0][2] // 2 + 1


def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 6:
                with torch.no_grad():
                    next(iter(rest["model"].parameters())).fill_(math.nan)

    model = small_model()
    result = run(small_config(steps=6), model, small_rows(), run_dir=tmp_path, callbacks=(Spoil(),))
    assert [math.isfinite(p.eval_loss) for p in result.curve] == [True, True, False]
    assert result.best_step == 3 and math.isfinite(result.best_eval_loss)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_model_that_was_broken_when_it_came(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    chosen = small_config(steps=4, eval_every=2, guards={"on_non_finite": "skip"})
    result = run(chosen, model, small_rows(), run_dir=tmp_path)
    assert result.best_step == 0 and math.isnan(result.best_eval_loss) and result.skipped_steps == 4
