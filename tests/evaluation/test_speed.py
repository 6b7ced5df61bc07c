"""Speed and memory: what is measured, not how fast this computer is."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.behaviour import cache_equals_full, finite_logits, generate_greedily
from apt.evaluation.memory import available_bytes, parameter_bytes, peak_rss_bytes
from apt.evaluation.speed import compare_speed, measure_speed


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> Any:
    return Checkpoint.open(llama_dir).load(dtype=torch.float32)


def test_every_token_is_computed_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    forward = model.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        lengths.append(options["input_ids"].shape[1])
        return forward(*arguments, **options)

    monkeypatch.setattr(model, "forward", counted)
    speed = measure_speed(model, prompt_tokens=20, new_tokens=5, repeats=2)
    assert lengths == 3 * [20, 1, 1, 1, 1, 1]
    for rate in (speed.prefill, speed.decode):
        assert 0 < rate.low <= rate.tokens_per_second <= rate.high
    assert (speed.prompt_tokens, speed.new_tokens, speed.repeats, speed.dtype) == (20, 5, 2, "float32")


def test_the_measurement_fits_in_the_context(model: Any) -> None:
    speed = measure_speed(model, prompt_tokens=5000, new_tokens=5000, repeats=1)
    assert speed.prompt_tokens + speed.new_tokens <= 128


def test_two_models_are_measured_in_turn(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = copy.deepcopy(model)
    order: list[str] = []
    for name, each in (("first", model), ("second", other)):
        monkeypatch.setattr(each, "forward", _noted(each.forward, name, order))
    found = compare_speed(model, other, prompt_tokens=20, new_tokens=3, rounds=7)
    rounds = order[2:]  # after the warm-up
    assert rounds == [name for n in range(7) for name in (("first", "second") if n % 2 == 0 else ("second", "first"))]
    for ratio in (found.prefill_ratio, found.decode_ratio):
        assert 0 < ratio.low <= ratio.value <= ratio.high
    assert (found.first.repeats, found.second.new_tokens, found.first.prompt_tokens) == (7, 3, 20)


def _noted(forward: Any, name: str, order: list[str]) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        if options["input_ids"].shape[1] > 1:
            order.append(name)
        return forward(*arguments, **options)

    return run


def test_a_short_time_shortens_the_rounds(model: Any) -> None:
    found = compare_speed(model, model, prompt_tokens=20, new_tokens=32, seconds=1e-6)
    assert (found.first.repeats, found.first.new_tokens) == (6, 4)


def test_the_ratio_is_the_second_over_the_first(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(1.0, 1.0)] * 2 + [(4.0, 2.0), (1.0, 1.0), (1.0, 1.0), (4.0, 2.0)] * 4)
    monkeypatch.setattr("apt.evaluation.speed._round", lambda *_: next(times))
    found = compare_speed(model, model, prompt_tokens=20, new_tokens=4, rounds=8)
    assert (found.prefill_ratio.value, found.decode_ratio.value) == (4.0, 2.0)
    assert found.first.decode.tokens_per_second == 2.0


def test_memory_counts_a_tied_tensor_once(model: Any) -> None:
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert parameter_bytes(model) == 4 * model.num_parameters() + buffers
    assert peak_rss_bytes() > 10**8 and available_bytes() > 0


def test_greedy_generation_equals_a_loop(model: Any) -> None:
    ids = [0]
    with torch.no_grad():
        for _ in range(10):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    assert generate_greedily(model, 0, 10) == ids[1:]


def test_a_cache_that_forgets_is_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([[0, 9, 8, 7, 6, 5]])
    assert cache_equals_full(model, ids).passed
    forward = model.forward

    def forgetful(*arguments: Any, **options: Any) -> Any:
        return forward(*arguments, **{k: v for k, v in options.items() if k != "past_key_values"})

    monkeypatch.setattr(model, "forward", forgetful)
    assert not cache_equals_full(model, ids).passed
    assert finite_logits(model, ids).passed
