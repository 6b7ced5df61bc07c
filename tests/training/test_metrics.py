"""Figures: their names are fixed, and what they say of speed is measured."""

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_helpers import small_config, small_model, small_rows
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, TrainerCallback

from apt.training import performance
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows
from apt.training.performance import FlopCount, Meter, measured_peak
from apt.training.runner import run

GOLDEN = Path(__file__).with_name("metric_names.txt")
GOLDEN_OF_LOSSES = Path(__file__).with_name("metric_names_of_losses.txt")


class Answered(TokenRows):
    """Rows with a right answer, which a reward asks for."""

    def meta(self, index: int) -> dict[str, Any]:
        return {"answer": "4"}


class Tokens:
    """What a policy reads of a tokenizer."""

    def decode(self, ids: list[int], **rest: Any) -> str:
        return " ".join(map(str, ids))


class Logged(TrainerCallback):
    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.entries.append(dict(rest["logs"]))


def logged_by(tmp_path: Path, model: Any = None, **train: Any) -> list[dict[str, float]]:
    seen = Logged()
    config = small_config(**{"loss": {"name": "distill", "alpha": 0.5}, "steps": 4, "eval_every": 2, **train})
    teacher = small_model(1).eval().requires_grad_(False)
    resources = Resources(teacher=teacher, tokenizer=Tokens())
    rows = Answered(small_rows().ids, small_rows().labels)
    run(config, model or small_model(), rows, run_dir=tmp_path, resources=resources, callbacks=(seen,))
    return seen.entries


def test_the_names_are_the_written_ones(tmp_path: Path) -> None:
    """A name that disappears breaks dashboards; a new one belongs into the file."""
    names = {name for entry in logged_by(tmp_path) for name in entry if "/" in name}
    assert sorted(names) == GOLDEN.read_text(encoding="utf-8").split()


def test_the_names_of_every_loss_are_the_written_ones(tmp_path: Path) -> None:
    """What only some losses measure: inner states, relations, a teacher known in part, rewards, rows of its own."""
    rollout = {"name": "sample", "max_new_tokens": 4}
    taught = {"name": "distill", "alpha": 0.5}
    losses: list[dict[str, Any]] = [
        {**taught, "targets": "top_k", "k": 8, "on_policy": {"rollout": rollout, "prompt_tokens": 4}},
        {**taught, "strategy": "mixed", "feature": {"attention_weight": 1.0}, "relation": {}},
        {"name": "policy", "rewards": {"right": {"reward": {"name": "exact_answer"}}}, "rollout": rollout},
        {"name": "multi_task", "tasks": {"focal": {"loss": {"name": "focal"}}, "plain": {"loss": {"name": "ce"}}}},
    ]
    names: set[str] = set()
    for i, loss in enumerate(losses):
        seen = logged_by(tmp_path / str(i), small_model(attn_implementation="eager"), loss=loss)
        names |= {name for entry in seen for name in entry if "/" in name}
    common = set(GOLDEN.read_text(encoding="utf-8").split())
    assert sorted(names - common) == GOLDEN_OF_LOSSES.read_text(encoding="utf-8").split()


def test_figures_of_speed_are_plausible(tmp_path: Path) -> None:
    begun = time.perf_counter()
    entries = [e for e in logged_by(tmp_path, log_every=1) if "perf/step_s" in e]
    passed = time.perf_counter() - begun
    assert len(entries) == 4
    for entry in entries:
        assert 0.0 < entry["perf/step_s"] < passed
        tokens = entry["perf/tokens_per_s"] * entry["perf/step_s"]
        assert tokens == pytest.approx(4 * 15)
        assert 0.0 < entry["perf/mfu"] < 1.0
        assert 50.0 < entry["perf/peak_rss_mb"] < 1e6
    assert sum(e["perf/step_s"] for e in entries) < passed


def test_a_family_that_is_not_known_has_no_mfu(tmp_path: Path) -> None:
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64,
        )
    )  # fmt: skip
    model.config.model_type = "no_such_family"
    entries = logged_by(tmp_path, model)
    assert any("perf/step_s" in e for e in entries) and not any("perf/mfu" in e for e in entries)


def test_a_model_that_is_trained_in_part_has_no_mfu() -> None:
    model = small_model()
    assert FlopCount.of(model) is not None
    next(iter(model.parameters())).requires_grad_(False)
    assert FlopCount.of(model) is None


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_pytorch_counts(tied: bool) -> None:
    model = small_model(tie_word_embeddings=tied, attn_implementation="eager")
    ids = torch.zeros(3, 20, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    flops = FlopCount.of(model)
    assert flops is not None
    assert flops.body(3, 20) + flops.head(3 * 20) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_peak_is_measured_once_and_is_of_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_peak.cache_clear()
    monkeypatch.setattr(performance, "CALIBRATION_SECONDS", 0.02)
    products: list[torch.dtype] = []
    original = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **rest: Any) -> torch.Tensor:
        products.append(a.dtype)
        return original(a, b, **rest)

    monkeypatch.setattr(torch, "mm", mm)
    peak = measured_peak(torch.bfloat16, "cpu")
    made = len(products)
    assert measured_peak(torch.bfloat16, "cpu") == peak > 1e8
    assert made == len(products) >= 1 and set(products) == {torch.bfloat16}
    measured_peak.cache_clear()


def test_a_pause_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(performance.time, "perf_counter", lambda: now)
    meter = Meter(torch.device("cpu"), torch.float32, None, 1)
    meter.begin(3)
    now += 4.0
    meter.pause()
    now += 50.0
    meter.pause()
    meter.resume()
    now += 2.0
    meter.add(torch.tensor(30.0), [(2, 16)])
    figures = meter.figures(6)
    assert figures["perf/step_s"] == 2.0 and figures["perf/tokens_per_s"] == 5.0 and figures["train/tokens"] == 30.0
    now += 1.0
    assert meter.figures(7)["perf/step_s"] == 1.0 and math.isclose(meter.figures(8)["perf/tokens_per_s"], 0.0)


def test_evaluating_and_saving_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apt.training import callbacks, trainer

    now = 100.0

    def taking(seconds: float, original: Any) -> Any:
        def later(*arguments: Any, **options: Any) -> Any:
            nonlocal now
            now += seconds
            return original(*arguments, **options)

        return later

    monkeypatch.setattr(performance, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(performance, "measured_peak", lambda *_: 1e9)  # it would wait for a clock that stands
    monkeypatch.setattr(trainer.ContractTrainer, "judge_step", taking(2.0, trainer.ContractTrainer.judge_step))
    monkeypatch.setattr(trainer, "score_source", taking(50.0, trainer.score_source))
    monkeypatch.setattr(callbacks, "seal", taking(700.0, callbacks.seal))
    steps = [e["perf/step_s"] for e in logged_by(tmp_path, log_every=1) if "perf/step_s" in e]
    assert steps == [2.0] * 4
    # Three evaluations and two saves passed, and are in no step.
    assert now == 100.0 + 4 * 2.0 + 3 * 50.0 + 2 * 700.0
