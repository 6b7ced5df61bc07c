"""The loop: accumulation, best checkpoint, guards, silence, exact resume after a kill."""

import copy
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_config, small_model, small_rows

from apt import events
from apt.console.errors import AptError, BadInputError, UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows, collate, set_aside
from apt.training.runner import run, steps_within


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    for name in a:
        assert float((a[name] - b[name]).abs().max()) <= tolerance, name


def test_training_learns_and_records_its_curve(tmp_path: Path) -> None:
    model = small_model()
    result = run(small_config(steps=7), model, small_rows(), run_dir=tmp_path / "run")
    assert [p.step for p in result.curve] == [0, 3, 6, 7]
    assert result.curve[0].train_loss is None and result.curve[0].tokens == 0
    assert result.curve[-1].tokens == result.tokens == 7 * 4 * 15
    assert result.curve[-1].eval_loss < result.curve[0].eval_loss
    assert result.best_eval_loss == min(p.eval_loss for p in result.curve)
    assert not model.training


def test_metric_names_are_fixed(tmp_path: Path) -> None:
    config = small_config(loss={"name": "distill", "alpha": 0.5}, steps=3)
    teacher = small_model(1).eval().requires_grad_(False)
    result = run(config, small_model(), small_rows(), run_dir=tmp_path, resources=Resources(teacher=teacher))
    assert sorted(result.metrics) == [
        "kd/kl_token", "kd/top1_agree", "loss/ce", "loss/distill", "perf/step_s", "perf/tokens_per_s",
        "train/grad_norm", "train/loss", "train/lr", "train/tokens",
    ]  # fmt: skip


@pytest.mark.parametrize("loss", [{"name": "ce"}, {"name": "distill", "alpha": 0.6, "temperature": 2.0}])
def test_accumulation_equals_one_big_batch(tmp_path: Path, loss: dict[str, Any]) -> None:
    rows = small_rows(20)
    rows.labels[3] = -100  # a row with nothing counted
    rows.labels[5:9, 4:] = -100  # micro-batches of unequal weight
    teacher = small_model(1).eval().requires_grad_(False)
    outcomes = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = small_model()
        config = small_config(
            batch_rows=batch, grad_accum=accumulation, steps=4, eval_every=4, loss=loss,
            optimizer={"name": "adamw", "lr": 0.001},
        )  # fmt: skip
        run(config, model, rows, run_dir=tmp_path / str(batch), resources=Resources(teacher=teacher))
        outcomes.append(weights(model))
    assert_same(*outcomes, tolerance=2e-5)


def test_rows_that_count_nothing_change_nothing(tmp_path: Path) -> None:
    rows = small_rows(12)
    rows.labels[1:] = -100
    rows.labels[0] = rows.ids[0]
    model = small_model()
    run(small_config(steps=2, eval_every=1), model, rows, run_dir=tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_best_checkpoint_is_kept_and_the_start_when_nothing_improves(tmp_path: Path) -> None:
    model = small_model()
    run(small_config(steps=30, eval_every=15), model, small_rows(), run_dir=tmp_path / "a")
    before = weights(model)
    ruin = small_config(steps=4, eval_every=2, optimizer={"name": "adamw", "lr": 1.0})
    result = run(ruin, model, small_rows(), run_dir=tmp_path / "b")
    assert result.best_step == 0
    assert_same(before, weights(model))


def test_the_model_holds_the_best_weights(tmp_path: Path) -> None:
    model = small_model()
    config = small_config(steps=12, eval_every=2, optimizer={"name": "adamw", "lr": 0.1})
    rows = small_rows()
    result = run(config, model, rows, run_dir=tmp_path)
    held = collate(list(set_aside(rows, 4)[1]))
    with torch.no_grad():
        out = model(input_ids=held["input_ids"], labels=held["labels"])
    assert float(out.loss) == pytest.approx(result.best_eval_loss, rel=1e-5)


class _Exploding:
    needs: frozenset[str] = frozenset()

    def __init__(self, options: Any, resources: Any) -> None:
        from apt.training.losses.ce import CrossEntropy, CrossEntropyOptions

        self._inner = CrossEntropy(CrossEntropyOptions(), resources)

    def __call__(self, model: Any, batch: Any, *, rng: torch.Generator, step: int) -> Any:
        out = self._inner(model, batch, rng=rng, step=step)
        return out._replace(loss_sum=out.loss_sum * (math.nan if step == 2 else 1.0))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    component = Component("loss", "exploding", f"{__name__}:_Exploding", "apt.training.sections:Section")
    registry = Registry([*CORE_COMPONENTS, component])
    from apt.training.config import parse_config

    train = {"loss": {"name": "exploding"}, "steps": 5, "eval_rows": 4, "eval_every": 5, "batch_rows": 4}
    config = parse_config({"train": train}, registry)
    with pytest.raises(AptError, match="not a finite number at step 3"):
        run(config, small_model(), small_rows(), run_dir=tmp_path, registry=registry)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(small_config(), small_model(), small_rows(), run_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_the_run_is_announced(tmp_path: Path) -> None:
    told: list[Any] = []
    unsubscribe = events.subscribe(lambda event, **facts: told.append((event, facts)))
    try:
        run(small_config(steps=3), small_model(), small_rows(), run_dir=tmp_path)
    finally:
        unsubscribe()
    names = [name for name, _ in told]
    assert names == ["on_training_start", *["on_training_step"] * 3, "on_training_end"]
    assert told[0][1]["steps"] == 3 and told[0][1]["options"]["train"]["loss"]["name"] == "ce"
    assert [facts["step"] for _, facts in told[1:4]] == [1, 2, 3]
    assert all(facts["metrics"]["train/loss"] > 0 for _, facts in told[1:])


def test_bad_rows_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = small_rows()
    with pytest.raises(BadInputError, match="another tokenizer"):
        run(small_config(), small_model(), TokenRows(rows.ids + 50, rows.labels), run_dir=tmp_path / "r")
    with pytest.raises(BadInputError, match="no token"):
        empty = torch.full_like(rows.labels, -100)
        run(small_config(), small_model(), TokenRows(rows.ids, empty), run_dir=tmp_path / "r")
    with pytest.raises(UsageError, match="set 24 of 24 rows aside"):
        run(small_config(eval_rows=24), small_model(), rows, run_dir=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_run_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    run(small_config(), small_model(), small_rows(), run_dir=tmp_path, identity="a")
    for config, identity, reason in (
        (small_config(seed=5), "a", "another config: train.seed"),
        (small_config(), "b", "another model or text"),
    ):
        with pytest.raises(UsageError, match=reason):
            run(config, small_model(), small_rows(), run_dir=tmp_path, identity=identity)


def test_timing_steps_leaves_the_model_alone() -> None:
    model = small_model()
    before = copy.deepcopy(weights(model))
    config = small_config(optimizer={"name": "muon"})
    assert steps_within(0.001, config, model, small_rows()) >= 1
    many = steps_within(50.0, config, model, small_rows())
    assert many > 10
    assert_same(before, weights(model))


def long_run(run_dir: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """A run with everything that a resume must restore: dropout, accumulation, both optimizers, a teacher."""
    model = small_model(attention_dropout=0.2)
    teacher = small_model(1).eval().requires_grad_(False)
    config = small_config(
        steps=60, eval_every=5, grad_accum=2, optimizer={"name": "muon"},
        loss={"name": "distill", "alpha": 0.5}, precision="auto",
    )  # fmt: skip
    result = run(config, model, small_rows(), run_dir=run_dir, resources=Resources(teacher=teacher))
    return weights(model), [(p.step, p.tokens, p.train_loss, p.eval_loss) for p in result.curve]


CHILD = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
spec = importlib.util.spec_from_file_location("test_runner", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.long_run(Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_exactly(tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, __file__, str(run_dir)])
    deadline = time.monotonic() + 200
    while not list(run_dir.glob("checkpoint-*/trainer_state.json")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (run_dir / "checkpoint-60").exists()
    # What a kill in the middle of saving leaves:
    (run_dir / "checkpoint-59").mkdir()
    resumed, resumed_curve = long_run(run_dir)
    whole, whole_curve = long_run(tmp_path / "whole")
    assert_same(whole, resumed)
    assert resumed_curve == whole_curve
