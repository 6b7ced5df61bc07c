"""The writing speed is the slope over tokens: what happens once does not count."""

import pytest

from apt.plugins.builtin.ollama import verify_speed


class Clocked:
    """A runner on a clock of its own: 2 s to begin, then ``per_token`` seconds a token."""

    def __init__(self, per_token: float) -> None:
        self.per_token = per_token
        self.now = 0.0
        self.asked: list[int] = []

    def greedy(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        self.asked.append(new_tokens)
        self.now += 2.0 + self.per_token * new_tokens
        return [[0] * new_tokens for _ in prompts]


@pytest.mark.parametrize("per_token", [1e-4, 0.2])
def test_what_happens_once_does_not_count(monkeypatch, per_token):
    runner = Clocked(per_token)
    monkeypatch.setattr(verify_speed.time, "perf_counter", lambda: runner.now)
    rate = verify_speed.measure_decode(runner, 1, 4096)
    assert rate.tokens_per_second == pytest.approx(1 / per_token)
    assert rate.low == pytest.approx(rate.high)


def test_a_slow_model_is_asked_for_little(monkeypatch):
    runner = Clocked(1.0)
    monkeypatch.setattr(verify_speed.time, "perf_counter", lambda: runner.now)
    verify_speed.measure_decode(runner, 1, 4096)
    assert max(runner.asked) == 24


@pytest.mark.parametrize("context", [2, 8, 16, 23])
def test_a_context_that_is_too_short_gives_no_figure(monkeypatch, context):
    runner = Clocked(0.001)
    monkeypatch.setattr(verify_speed.time, "perf_counter", lambda: runner.now)
    assert verify_speed.measure_decode(runner, 1, context) is None
    assert max(runner.asked) < context
