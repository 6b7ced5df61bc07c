"""The loop: accumulation, best checkpoint, silence, refusals."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import small_config, small_model, small_rows

from apt import events
from apt.console.errors import BadInputError, UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.contract import Batch, LossOut, Metric, Resources, Row
from apt.training.data.rows import TokenRows, collate, set_aside
from apt.training.losses.ce import CrossEntropy
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


def test_evaluations_before_a_step_are_no_candidates_for_the_best(tmp_path: Path) -> None:
    model = small_model()
    run(small_config(steps=30, eval_every=15), model, small_rows(), run_dir=tmp_path / "a")
    before = weights(model)
    ruin = small_config(steps=6, eval_every=2, optimizer={"name": "adamw", "lr": 1.0})
    result = run(ruin, model, small_rows(), run_dir=tmp_path / "b", choose_from=3)
    late = [point for point in result.curve if point.step >= 3]
    assert result.best_eval_loss == min(point.eval_loss for point in late) > result.curve[0].eval_loss
    assert result.best_step in {point.step for point in late}
    assert any(not torch.equal(before[name], p) for name, p in weights(model).items())
    held = collate(list(set_aside(small_rows(), 4)[1]))
    with torch.no_grad():
        out = model(input_ids=held["input_ids"], labels=held["labels"])
    assert float(out.loss) == pytest.approx(result.best_eval_loss, rel=1e-5)


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


@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore")  # what torch's own compiler warns of differs between versions
def test_a_compiled_model_comes_to_the_same_losses_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    # The compiler imports setuptools, whose distutils will not take the place of one that another test has imported.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    curves, states = [], []
    for compiled in (False, True):
        model = small_model(num_hidden_layers=1)
        names = [name for name, _ in model.named_parameters()]
        run_dir = tmp_path / str(compiled)
        curves.append(run(small_config(compile=compiled), model, small_rows(), run_dir=run_dir).curve)
        assert [name for name, _ in model.named_parameters()] == names
        states.append(load_file(run_dir / "checkpoint-6" / "model.safetensors"))
    assert [p.eval_loss for p in curves[1]] == pytest.approx([p.eval_loss for p in curves[0]], rel=1e-5)
    assert states[0].keys() == states[1].keys()


class LightRows:
    """Rows whose tokens weigh next to nothing."""

    def __init__(self, weight: float) -> None:
        self._rows, self._weight = small_rows(), weight

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        return {**row, "weights": torch.full((len(row["labels"]),), self._weight)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)


def test_the_scale_of_weights_does_not_matter(tmp_path: Path) -> None:
    outcomes = []
    for weight in (1.0, 1.0 / 1024, 0.0):
        outcomes.append(run(small_config(), small_model(), LightRows(weight), run_dir=tmp_path / str(weight)))
    losses = [[p.train_loss for p in found.curve[1:]] for found in outcomes]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == [0.0, 0.0]
    assert outcomes[1].best_eval_loss == pytest.approx(outcomes[0].best_eval_loss, rel=1e-5)


class Told(CrossEntropy):
    """Cross-entropy with metrics of its own."""

    def __call__(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        out = super().__call__(model, batch, rng=rng, step=step)
        zero, two = torch.zeros(()), torch.tensor(2.0)
        told = {"x/never": Metric(zero, zero), "x/mean": Metric(two, two), "x/sum": Metric(two, zero, "sum")}
        return out._replace(metrics={**out.metrics, **told})


def test_a_mean_of_nothing_is_no_figure(tmp_path: Path) -> None:
    known = [c for c in CORE_COMPONENTS if (c.kind, c.name) != ("loss", "ce")]
    schema = "apt.training.losses.ce:CrossEntropyOptions"
    registry = Registry([*known, Component("loss", "ce", f"{__name__}:Told", schema)])
    result = run(small_config(), small_model(), small_rows(), run_dir=tmp_path / "run", registry=registry)
    assert "x/never" not in result.metrics
    assert result.metrics["x/mean"] == 1.0
    assert result.metrics["x/sum"] == 2.0 * 3  # of three steps
