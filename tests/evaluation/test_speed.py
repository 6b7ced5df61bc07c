"""Speed and memory: what is measured, not how fast this computer is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.behaviour import cache_equals_full, finite_logits, generate_greedily
from apt.evaluation.memory import available_bytes, parameter_bytes, peak_rss_bytes
from apt.evaluation.speed import measure_speed


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
