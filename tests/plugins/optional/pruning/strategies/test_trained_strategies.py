"""Lottery and dynamic: exact sparsity, better than a cut without training, the same weights after a kill."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import killed
from pydantic import ValidationError

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.lock import locked
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError, UsageError
from apt.evaluation.scoring import perplexity, score_rows
from apt.evaluation.texts import rows_from_ids
from apt.plugins.optional.pruning.contract import Pruned, Task
from apt.plugins.optional.pruning.goals import Goal, Pattern
from apt.plugins.optional.pruning.masks.weights import linear_weights
from apt.plugins.optional.pruning.strategies.dynamic import DynamicSettings, DynamicStrategy
from apt.plugins.optional.pruning.strategies.lottery import LotterySettings, LotteryStrategy
from apt.plugins.optional.pruning.strategies.magnitude import MagnitudeStrategy
from apt.training import callbacks

SHORT = {"steps": 8, "batch_rows": 4, "eval_rows": 4, "lr": 0.01}
SETTINGS: dict[str, dict[str, Any]] = {
    "lottery": {**SHORT, "rounds": 2, "rewind_step": 2},
    "dynamic": {**SHORT, "steps": 16, "every": 3},
}
STRATEGIES: dict[str, Any] = {"lottery": LotteryStrategy, "dynamic": DynamicStrategy}


@pytest.fixture(scope="module")
def dense(llama_dir: Path) -> Any:
    """A random model whose predictions differ from token to token."""
    model = Checkpoint.open(llama_dir).load(dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 20.0 if "embed" in name else 6.0 if "proj" in name else 1.0
    return model.eval()


def task(dense: Any, name: str, goal: Goal | None = None, **changes: Any) -> Task:
    ids = torch.randint(2, 280, (24, 16), generator=torch.Generator().manual_seed(1))
    settings = {**SETTINGS[name], **changes.pop("settings", {})}
    architecture = descriptor(dense.config.to_dict(), where="test")
    return Task(
        dense, architecture, goal or Goal(ratio=0.6), rows_from_ids(ids, source="test"), settings=settings, **changes
    )


def zeros(pruned: Pruned, given: Task) -> dict[str, torch.Tensor]:
    return {m.name: m.weight.detach() == 0 for m in linear_weights(pruned.model, given.architecture)}


def loss(model: Any, given: Task) -> float:
    """How far a model is from the dense one: KL on the calibration text."""
    with torch.no_grad():
        ours, theirs = (m(input_ids=given.rows.ids).logits.log_softmax(-1) for m in (model, given.model))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_sparsity_is_exact_and_training_pays(dense: Any, name: str) -> None:
    given = task(dense, name)
    before = {n: v.clone() for n, v in dense.state_dict().items()}
    pruned = STRATEGIES[name]().prune(given)
    for mask in zeros(pruned, given).values():
        assert int(mask.sum()) == round(0.6 * mask.numel())
    assert pruned.removed_share == pytest.approx(0.6, abs=1e-3) and not pruned.smaller
    assert all(torch.equal(v, before[n]) for n, v in dense.state_dict().items())
    assert not pruned.model.training and pruned.model is not dense
    once = MagnitudeStrategy().prune(given)
    assert loss(pruned.model, given) < 0.9 * loss(once.model, given)
    assert pruned.trials[0].chosen and pruned.trials[0].removed_share == 0.6
    assert perplexity(score_rows(pruned.model, given.rows)).value > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_pattern_holds_in_every_group(dense: Any, name: str) -> None:
    changes = {"scope": "global", "loss": "ce", **({"rounds": 1} if name == "lottery" else {})}
    given = task(dense, name, Goal(pattern=Pattern(2, 4)), settings=changes)
    pruned = STRATEGIES[name]().prune(given)
    assert pruned.removed_share == 0.5
    for mask in zeros(pruned, given).values():
        assert bool((mask.reshape(-1, 4).sum(1) == 2).all())


def test_all_matrices_together_lose_the_share(dense: Any) -> None:
    given = task(dense, "lottery", settings={"scope": "global", "rounds": 1})
    pruned = LotteryStrategy().prune(given)
    counts = [(int(z.sum()), z.numel()) for z in zeros(pruned, given).values()]
    assert sum(c for c, _ in counts) == round(0.6 * sum(n for _, n in counts))
    assert len({round(c / n, 2) for c, n in counts}) > 1


@pytest.mark.parametrize(("name", "change", "nth"), [("lottery", {}, 14), ("dynamic", {"regrow": 0.3}, 6)])
def test_a_killed_call_goes_on_to_the_same_weights(
    dense: Any, name: str, change: dict[str, Any], nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = task(dense, name, settings=change)
    whole = STRATEGIES[name]().prune(given)
    given = replace(given, work_dir=tmp_path / "work")
    real, steps = callbacks.RunCallback.on_step_end, []

    def dies(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> Any:
        steps.append(1)
        if len(steps) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, args, state, control, **rest)

    monkeypatch.setattr(callbacks.RunCallback, "on_step_end", dies)
    killed(lambda: STRATEGIES[name]().prune(given))
    monkeypatch.undo()
    done: list[int] = []

    def counts(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> Any:
        done.append(1)
        return real(self, args, state, control, **rest)

    monkeypatch.setattr(callbacks.RunCallback, "on_step_end", counts)
    resumed = STRATEGIES[name]().prune(given)
    settings = SETTINGS[name]
    assert 0 < len(done) < settings["steps"] * (settings.get("rounds", 0) + 1)
    assert resumed.trials == whole.trials
    assert all(torch.equal(v, resumed.model.state_dict()[n]) for n, v in whole.model.state_dict().items())


def test_weights_are_rewound_and_rounds_told(dense: Any, tmp_path: Path) -> None:
    """Without a step after the rewinding, what is left has the very weights of that step."""
    given = task(dense, "lottery", work_dir=tmp_path / "work", settings={"lr": 1e-12})
    pruned = LotteryStrategy().prune(given)
    shares = [trial.removed_share for trial in reversed(pruned.trials)]
    assert shares == pytest.approx([0.0, 1 - 0.4**0.5, 0.6])
    assert [t.chosen for t in pruned.trials] == [True, False, False]
    dense_weights = dense.state_dict()
    for name, gone in zeros(pruned, given).items():
        left = pruned.model.state_dict()[name][~gone]
        torch.testing.assert_close(left, dense_weights[name][~gone], atol=1e-6, rtol=0)
    assert all(t.perplexity and t.perplexity > 1 for t in pruned.trials)
    assert len(list((tmp_path / "work").glob("rewind-*.safetensors"))) == 1


def test_growing_again_keeps_the_count_and_changes_the_mask(dense: Any) -> None:
    given, other = (task(dense, "dynamic", settings={"regrow": r, "steps": 4, "every": 1}) for r in (0.0, 0.9))
    first, second = (DynamicStrategy().prune(t) for t in (given, other))
    one, two = zeros(first, given), zeros(second, other)
    assert all(int(one[n].sum()) == int(two[n].sum()) for n in one)
    assert any(not torch.equal(one[n], two[n]) for n in one)


def test_one_process_at_a_time_is_at_work_on_an_output(dense: Any, tmp_path: Path) -> None:
    given = replace(task(dense, "dynamic"), work_dir=tmp_path / "work")
    with locked(tmp_path / "work", busy="", hint=""), pytest.raises(UsageError, match="another pruning is at work"):
        DynamicStrategy().prune(given)


def test_the_schedule_is_cubic_and_ends_before_the_training() -> None:
    settings = DynamicSettings(steps=100, ramp_share=0.5, every=10)
    changes = [step for step in range(100) if settings.changes(step)]
    assert changes == [0, 10, 20, 30, 40, 49] and settings.last_change == 49
    shares = [settings.share(step, 0.8) for step in changes]
    assert shares == sorted(shares) and shares[-1] == 0.8
    assert settings.share(24, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))
    assert [LotterySettings(rounds=2).share(n, 0.75) for n in range(3)] == [0.0, 0.5, 0.75]


def test_what_cannot_be_given_is_refused(dense: Any, llama_dir: Path) -> None:
    checkpoint = Checkpoint.open(llama_dir)
    for name, strategy in STRATEGIES.items():
        with pytest.raises(UnsupportedError, match=f"{name} cannot give 1,000 parameters"):
            strategy().preview(checkpoint, Goal(parameters=1000))
        with pytest.raises(UnsupportedError, match="1:5 does not fit"):
            strategy().preview(checkpoint, Goal(pattern=Pattern(1, 5)))
        plan = strategy().preview(checkpoint, Goal(pattern=Pattern(2, 4)))[0]
        assert (plan.removed_share, plan.parameters) == (0.5, checkpoint.parameters)
    with pytest.raises(UnsupportedError, match="grow again"):
        DynamicStrategy().prune(task(dense, "dynamic", Goal(pattern=Pattern(2, 4)), settings={"regrow": 0.1}))
    with pytest.raises(ValidationError, match="rewind_step"):
        LotterySettings(steps=5, rewind_step=5)
    few = replace(task(dense, "dynamic"), rows=rows_from_ids(torch.full((1, 8), 5), source="one"))
    with pytest.raises(BadInputError, match="too few"):
        DynamicStrategy().prune(few)
