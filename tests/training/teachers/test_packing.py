"""Records of a token: ids come back exactly, log-probabilities within the stated error, in the stated bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt.training.teachers.packing import EXPONENTS, FLOOR, Format


def distribution(seed: int, tokens: int, vocabulary: int, spread: float) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal((tokens, vocabulary)) * spread
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.integers(1, 3000),
    share=st.floats(0.0, 1.0),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    encoding=st.sampled_from(["packed", "plain"]),
)
def test_records_come_back(seed: int, vocabulary: int, share: float, spread: float, encoding: str) -> None:
    k = max(1, min(vocabulary, round(share * vocabulary)))
    log_probs = distribution(seed, 3, vocabulary, spread)
    ids = np.argsort(-log_probs, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(log_probs, ids, 1).astype(np.float32)
    layout = Format(encoding, k, vocabulary)  # type: ignore[arg-type]
    records = layout.pack(ids, values)
    assert records.shape == (3, layout.bytes_per_token) and records.dtype == np.uint8
    read_ids, read = layout.unpack(records)
    order = np.argsort(ids, axis=1, kind="stable") if encoding == "packed" else np.tile(np.arange(k), (3, 1))
    assert np.array_equal(read_ids, np.take_along_axis(ids, order, 1))
    exact = np.take_along_axis(values, order, 1)
    p, q = np.exp(exact.astype(np.float64)), np.exp(read.astype(np.float64))
    assert np.abs(p.sum(1) - q.sum(1)).max() < 5e-3  # float16 keeps the logarithm of the mass
    # No level is further from its neighbour than the steepest exponent lets it be; float16 adds its part.
    floored = np.maximum(exact, FLOOR).astype(np.float64)
    spans = floored.max(1) - floored.min(1)
    step = spans * max(EXPONENTS) / (2**layout.level_bits - 2)
    error = np.abs(floored - read).max(1)
    assert (error <= (step if encoding == "packed" else 0.0) + 2e-3 * (1.0 + np.abs(floored).max(1))).all()


@given(seed=st.integers(0, 2**32 - 1), vocabulary=st.integers(1, 200), k=st.integers(1, 40))
def test_draws_that_repeat_come_back(seed: int, vocabulary: int, k: int) -> None:
    ids = np.random.default_rng(seed).integers(0, vocabulary, (2, k))
    layout = Format("packed", k, vocabulary)
    read, _ = layout.unpack(layout.pack(ids, np.full((2, k), -1.0, np.float32)))
    assert np.array_equal(read, np.sort(ids, axis=1))


def test_128_ids_of_151936_take_at_most_300_bytes() -> None:
    assert Format("packed", 128, 151_936).bytes_per_token == 298
    assert Format("plain", 64, 151_936).bytes_per_token == 384


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_the_encoding_costs_less_than_a_thousandth_of_a_nat(spread: float) -> None:
    log_probs = distribution(0, 64, 20_000, spread)
    ids = np.argsort(-log_probs, axis=1)[:, :128]
    exact = np.take_along_axis(log_probs, np.sort(ids, axis=1), 1)
    layout = Format("packed", 128, 20_000)
    _, read = layout.unpack(layout.pack(ids, np.take_along_axis(log_probs, ids, 1).astype(np.float32)))
    p, q = np.exp(exact), np.exp(read.astype(np.float64))
    rest_p, rest_q = 1 - p.sum(1), 1 - q.sum(1)
    kl = (p * (exact - read)).sum(1) + rest_p * np.log(rest_p / rest_q)
    assert 0 < kl.mean() < 1e-3


@given(vocabulary=st.integers(129, 320_000), k=st.integers(1, 128))
def test_up_to_128_ids_take_at_most_300_bytes_in_vocabularies_up_to_320000(vocabulary: int, k: int) -> None:
    layout = Format("packed", k, vocabulary)
    assert layout.bytes_per_token <= 300 and 5 <= layout.level_bits <= 8


@pytest.mark.parametrize("exponent", [1.0, 2.5])
def test_levels_keep_the_tails(exponent: float) -> None:
    """A distribution as peaked as a language model's: rank to a power; the least likely of 128 ids is kept, too."""
    rng = np.random.default_rng(1)
    logits = -exponent * np.log(np.arange(1, 20_001)) + rng.normal(0.0, 0.5, (32, 20_000))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.sort(np.argsort(-log_probs, axis=1)[:, :128], axis=1)
    exact = np.take_along_axis(log_probs, ids, 1)
    layout = Format("packed", 128, 20_000)
    read = layout.unpack(layout.pack(ids, exact.astype(np.float32)))[1]
    assert np.abs(exact - read).max() < 0.15
