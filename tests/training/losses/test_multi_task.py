"""Several losses over the rows of their parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_config, small_model, small_rows

from apt.document import DocumentError
from apt.training.components import build_loss
from apt.training.contract import IGNORED, Resources
from apt.training.data.rows import TokenRows, batch_of
from apt.training.runner import run


class Parted(TokenRows):
    """Rows of two parts by turns, and a third one now and then."""

    def part(self, index: int) -> str:
        return "other" if index % 7 == 6 else "ab"[index % 2]


def parted(n: int = 24) -> Parted:
    rows = small_rows(n)
    return Parted(rows.ids, rows.labels)


TASKS: dict[str, Any] = {
    "words": {"loss": {"name": "ce"}, "parts": ["a"]},
    "taught": {"loss": {"name": "distill", "strategy": "feature"}, "weight": 0.5, "parts": ["b"]},
    "all": {"loss": {"name": "distill", "alpha": 0.7}, "weight": 2.0, "parts": ["a", "b"]},
}


def make(tasks: dict[str, Any], student: Any) -> Any:
    teacher = small_model(1, num_hidden_layers=3).eval().requires_grad_(False)
    section = small_config(loss={"name": "multi_task", "tasks": tasks}).train.loss
    return build_loss(section, resources=Resources(teacher=teacher, model=student))


def call(loss: Any, model: Any, batch: Any) -> Any:
    batch = loss.prepare(model, batch, rng=torch.Generator(), step=0)
    return batch, loss(model, batch, rng=torch.Generator(), step=0)


def test_the_sum_is_that_of_the_losses_over_their_rows() -> None:
    student = small_model()
    loss = make(TASKS, student)
    batch, out = call(loss, student, batch_of(parted(), range(8)))
    rows = {"words": [0, 2, 4], "taught": [1, 3, 5, 7], "all": [0, 1, 2, 3, 4, 5, 7]}
    total = 0.0
    for name, task in TASKS.items():
        alone = make({name: {**task, "parts": None, "weight": 1.0}}, student)
        _, one = call(alone, student, batch_of(parted(), rows[name]))
        total += task.get("weight", 1.0) * float(one.loss_sum.detach())
        assert float(out.metrics[f"loss/{name}"].sum) == pytest.approx(float(one.loss_sum.detach()), rel=1e-6)
    assert float(out.loss_sum.detach()) == pytest.approx(total, rel=1e-6)
    assert (batch["labels"][6] == IGNORED).all() and float(out.weight) == 7 * 15
    assert {"loss/words/ce", "loss/taught/feature", "kd/all/kl_token"} <= set(out.metrics)


def test_a_batch_without_a_task_s_rows_still_involves_all_its_parameters() -> None:
    student = small_model()
    loss = make(TASKS, student)
    _, out = call(loss, student, batch_of(parted(), [0, 2]))
    assert list(loss.parameters())
    gradients = torch.autograd.grad(out.loss_sum, list(loss.parameters()))
    assert all(float(g.abs().sum()) == 0.0 for g in gradients)
    _, other = call(loss, student, batch_of(parted(), range(8)))
    assert set(out.metrics) == set(other.metrics)
    assert float(out.metrics["loss/taught"].weight) == 0.0


def test_nested_parameters_are_trained_and_metrics_reach_the_log(tmp_path: Path) -> None:
    student = small_model()
    config = small_config(loss={"name": "multi_task", "tasks": TASKS}, steps=4, eval_every=2, grad_accum=2)
    teacher = small_model(1, num_hidden_layers=3).eval().requires_grad_(False)
    result = run(config, student, parted(), run_dir=tmp_path, resources=Resources(teacher=teacher))
    assert {"loss/words", "loss/words/ce", "loss/taught/feature", "kd/all/top1_agree"} <= set(result.metrics)
    from safetensors import safe_open

    with safe_open(tmp_path / "checkpoint-4" / "model.safetensors", "pt") as held:
        names = [n for n in held.keys() if "projections" in n]  # noqa: SIM118
        assert len(names) == 2
        for name in names:
            assert not torch.equal(held.get_tensor(name), torch.eye(32))


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    outcomes = []
    teacher = small_model(1, num_hidden_layers=3).eval().requires_grad_(False)
    for rows, accumulation in ((8, 1), (2, 4)):
        student = small_model()
        config = small_config(
            loss={"name": "multi_task", "tasks": TASKS}, steps=3, eval_every=3, batch_rows=rows,
            grad_accum=accumulation, optimizer={"name": "adamw", "lr": 0.001},
        )  # fmt: skip
        run(config, student, parted(), run_dir=tmp_path / str(rows), resources=Resources(teacher=teacher))
        outcomes.append([p.detach().clone() for p in student.parameters()])
    for a, b in zip(*outcomes, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_a_task_may_write_its_own_rows() -> None:
    student = small_model()
    rollout = {"name": "sample", "max_new_tokens": 4}
    tasks = {
        "words": {"loss": {"name": "ce"}, "parts": ["a"]},
        "own": {"loss": {"name": "distill", "on_policy": {"rollout": rollout, "prompt_tokens": 3}}, "parts": ["b"]},
    }
    batch, out = call(make(tasks, student), student, batch_of(parted(), range(4)))
    assert batch["tasks"]["own"]["labels"].shape[1] <= 7 and batch["tasks"]["words"]["labels"].shape[1] == 16
    assert float(out.metrics["rollout/own/len_mean"].weight) == 2.0
    assert float(out.weight) == 4 * 15


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ({}, "tasks"),
        ({"a": {"loss": {"name": "cee"}}}, "tasks.a.loss.name"),
        ({"a": {"loss": {"name": "ce", "label_smoothin": 0.1}}}, "did you mean 'label_smoothing'"),
        ({"a": {"loss": {"name": "ce"}, "weight": 0}}, "tasks.a.weight"),
        ({"a": {"loss": {"name": "ce"}, "parts": []}}, "tasks.a.parts"),
        ({"a/b": {"loss": {"name": "ce"}}}, "no name of a task"),
        ({"a": {"loss": {"name": "distill", "on_policy": {"rollout": {"name": "sampl"}}}}}, "did you mean 'sample'"),
    ],
)
def test_bad_tasks_are_refused(tasks: Any, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        small_config(loss={"name": "multi_task", "tasks": tasks})
    assert reason in f"{caught.value.message} {caught.value.hint}"
