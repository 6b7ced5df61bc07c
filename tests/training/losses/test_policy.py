"""RLOO: its baseline, its gradient in float64, its metrics, and that a reward rises where it can."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_model, small_rows
from transformers import TrainerCallback

from apt.console.errors import UsageError
from apt.document import DocumentError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.components import build_loss, needed_by
from apt.training.config import parse_config
from apt.training.contract import Resources
from apt.training.data.rows import batch_of
from apt.training.losses.policy import leave_one_out
from apt.training.runner import run


class Words:
    """A tokenizer whose text is the ids."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, ids))


class EvenIds:
    """The share of even ids; texts that begin with a multiple of eleven cannot be judged."""

    needs: frozenset[str] = frozenset()

    def __init__(self, options: Any, resources: Any) -> None: ...

    def __call__(self, texts: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
        found: list[float | None] = []
        for text in texts:
            ids = [int(word) for word in text.split()]
            found.append(None if ids[0] % 11 == 0 else sum(i % 2 == 0 for i in ids) / len(ids))
        return found


REGISTRY = Registry(
    [*CORE_COMPONENTS, Component("reward", "even", f"{__name__}:EvenIds", "apt.training.sections:Section")]
)


def config_of(steps: int = 2, loss: dict[str, Any] | None = None, **train: Any) -> Any:
    policy: dict[str, Any] = {
        "name": "policy", "samples": 4, "prompt_tokens": 2, "rewards": {"even": {"reward": {"name": "even"}}},
        "rollout": {"name": "sample", "max_new_tokens": 4},
    }  # fmt: skip
    settings = {
        "steps": steps, "batch_rows": 4, "eval_every": steps, "eval_rows": 4, "precision": "fp32",
        "optimizer": {"name": "adamw", "lr": 0.01},
        "loss": loss if loss and "name" in loss else {**policy, **(loss or {})},
    }  # fmt: skip
    return parse_config({"train": {**settings, **train}}, REGISTRY)


def make(student: Any, **loss: Any) -> Any:
    teacher = small_model(1).to(student.dtype).eval().requires_grad_(False)
    resources = Resources(teacher=teacher, model=student, tokenizer=Words(), registry=REGISTRY)
    return build_loss(config_of(loss=loss).train.loss, resources=resources), teacher


def test_the_baseline_is_the_mean_of_the_others() -> None:
    nan = torch.nan
    rewards = torch.tensor([[1.0, 2.0, 6.0], [1.0, nan, 3.0], [5.0, nan, nan]])
    wanted = torch.tensor([[-3.0, -1.5, 4.5], [-2.0, nan, 2.0], [nan, nan, nan]])
    assert torch.equal(leave_one_out(rewards).nan_to_num(-99.0), wanted.nan_to_num(-99.0))


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_gradient_is_that_of_rloo(kl: float) -> None:
    student = small_model().double()
    loss, teacher = make(student, kl=kl)
    batch = loss.prepare(student, batch_of(small_rows(), range(3)), rng=torch.Generator().manual_seed(1), step=0)
    assert batch["input_ids"].shape[0] == 12
    out = loss(student, batch, rng=torch.Generator(), step=0)
    found = torch.autograd.grad(out.loss_sum, list(student.parameters()))
    rewards, log_probs = [], []
    judge = EvenIds(None, None)
    for ids in batch["input_ids"]:
        both = []
        for model in (student, teacher):
            chances = model(input_ids=ids[None]).logits[0, 1:-1].log_softmax(-1)
            both.append(chances.gather(-1, ids[2:, None]).sum())
        reward = judge([" ".join(map(str, ids[2:].tolist()))], [{}])[0]
        rewards.append(torch.nan if reward is None else reward - kl * float((both[0] - both[1]).detach()))
        log_probs.append(both[0])
    total = torch.zeros((), dtype=torch.float64)
    for group in range(3):
        mine = range(4 * group, 4 * group + 4)
        scored = [i for i in mine if rewards[i] == rewards[i]]
        for i in scored:
            others = [rewards[j] for j in scored if j != i]
            if others:
                total = total - (rewards[i] - sum(others) / len(others)) * log_probs[i]
    wanted = torch.autograd.grad(total, list(student.parameters()))
    assert float(out.loss_sum.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_metrics_tell_every_reward_and_what_was_not_scored() -> None:
    student = small_model()
    rewards = {
        "even": {"reward": {"name": "even"}, "weight": 2.0},
        "answer": {"reward": {"name": "exact_answer"}},
    }
    loss, _ = make(student, rewards=rewards)
    batch = dict(batch_of(small_rows(), range(6)))
    batch["meta"] = [{"answer": "4"} if i % 2 else {} for i in range(6)]
    prepared = loss.prepare(student, batch, rng=torch.Generator().manual_seed(0), step=0)
    out = loss(student, prepared, rng=torch.Generator(), step=0)
    assert set(out.metrics) == {
        "reward/mean", "reward/even/mean", "reward/even/unscored", "reward/answer/mean", "reward/answer/unscored",
        "rollout/len_mean", "rollout/clip_frac",
    }  # fmt: skip
    assert float(out.metrics["reward/answer/unscored"].sum) == 12.0
    assert int(out.metrics["reward/answer/unscored"].weight) == 24
    counted = (prepared["labels"] != -100).any(-1)
    assert not counted[:4].any() and float(out.weight) == float((prepared["labels"] != -100).sum())


def test_rows_that_count_nothing_are_left_alone() -> None:
    student = small_model()
    loss, _ = make(student)
    batch = dict(batch_of(small_rows(), range(2)))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    out = loss(student, loss.prepare(student, batch, rng=torch.Generator(), step=0), rng=torch.Generator(), step=0)
    out.loss_sum.backward()
    assert float(out.loss_sum.detach()) == 0.0 == float(out.weight)


class KeepLast(TrainerCallback):
    """Measures the reward of the weights of the last step."""

    def __init__(self, outcomes: dict[str, float], name: str) -> None:
        self._outcomes, self._name = outcomes, name

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        if state.global_step == state.max_steps:
            self._outcomes[self._name] = mean_reward(model.model)


def mean_reward(model: Any) -> float:
    loss, _ = make(model, samples=16)
    batch = loss.prepare(model, batch_of(small_rows(), range(8)), rng=torch.Generator().manual_seed(9), step=0)
    figures = batch["rewards"]["mean"]
    return float(figures[~figures.isnan()].mean())


def test_the_reward_rises_and_the_control_s_does_not(tmp_path: Path) -> None:
    outcomes: dict[str, float] = {}
    for name, config in (("policy", config_of(30)), ("control", config_of(30, {"name": "ce"}))):
        model = small_model()
        # Its best checkpoint is chosen by cross-entropy; the reward is that of the last step.
        run(
            config, model, small_rows(), run_dir=tmp_path / name, registry=REGISTRY,
            resources=Resources(tokenizer=Words()), callbacks=(KeepLast(outcomes, name),),
        )  # fmt: skip
    assert outcomes["policy"] > outcomes["control"] + 0.2


def test_what_it_needs_is_asked_for() -> None:
    section = config_of().train.loss
    with pytest.raises(UsageError, match="needs a tokenizer"):
        build_loss(section, REGISTRY)
    with pytest.raises(UsageError, match="needs a teacher where kl is above 0"):
        build_loss(config_of(loss={"kl": 0.1}).train.loss, REGISTRY, resources=Resources(tokenizer=Words()))


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ({"rewards": {}}, "loss.rewards"),
        ({"rewards": {"a": {"reward": {"name": "evn"}}}}, "did you mean 'even'"),
        ({"rewards": {"a": {"reward": {"name": "exact_answer", "pattern": "("}}}}, "no regular expression"),
        ({"samples": 1}, "loss.samples"),
        ({"kl": -1.0}, "loss.kl"),
    ],
)
def test_bad_settings_are_refused(loss: dict[str, Any], reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        config_of(loss=loss)
    assert reason in f"{caught.value.message} {caught.value.hint}"


def test_a_teacher_is_needed_where_it_costs_to_leave_it() -> None:
    assert "teacher" not in needed_by(config_of(), REGISTRY)
    assert needed_by(config_of(loss={"kl": 0.1}), REGISTRY)["teacher"] == "loss 'policy'"
