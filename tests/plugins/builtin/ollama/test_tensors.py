"""Row order, types and encoding, without a model around them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError
from apt.plugins.builtin.ollama import tensors
from apt.plugins.builtin.ollama.mapping import PlannedTensor
from apt.plugins.builtin.ollama.tensors import choose_type, encode, interleave_halves, source_chunks, stored_bytes


def rotate_halves(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """RoPE as transformers computes it, on ``[head_dim]``."""
    half = len(x) // 2
    a, b = x[:half], x[half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])


def rotate_pairs(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """RoPE as llama.cpp computes it, on ``[head_dim]``."""
    a, b = x[0::2], x[1::2]
    out = np.empty_like(x)
    out[0::2], out[1::2] = a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)
    return out


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 4), (2, 8), (4, 6)])
def test_interleaved_rows_give_the_same_attention_scores(heads: int, head_dim: int) -> None:
    random = np.random.default_rng(heads * head_dim)
    queries, keys = (random.normal(size=(heads * head_dim, 5)) for _ in range(2))
    x, y = random.normal(size=(2, 5))
    angles = random.normal(size=(2, head_dim // 2))
    q, k = (interleave_halves(w, head_dim) for w in (queries, keys))
    for head in range(heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        ours = rotate_halves(queries[part] @ x, angles[0]) @ rotate_halves(keys[part] @ y, angles[1])
        theirs = rotate_pairs(q[part] @ x, angles[0]) @ rotate_pairs(k[part] @ y, angles[1])
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_chunks_of_any_size_are_the_tensor(
    new_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    checkpoint = Checkpoint.open(new_llama(tmp_path / "m", dtype=dtype))
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = checkpoint.read(name).float().numpy()
    for heads in (0, 4):
        planned = PlannedTensor("q", name, (32, 32), heads)
        expected = interleave_halves(whole, 8) if heads else whole
        for values in (1, 300, 1 << 20):
            monkeypatch.setattr(tensors, "CHUNK_VALUES", values)
            chunks = list(source_chunks(checkpoint, planned))
            np.testing.assert_array_equal(np.concatenate(chunks), expected)
            assert max(chunk.size for chunk in chunks) <= max(values, 32 * 8)


def test_a_file_that_shrank_is_told(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(new_llama(tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    last = max(checkpoint.tensors.values(), key=lambda t: t.start)
    with pytest.raises(BadInputError, match="truncated"):
        list(source_chunks(checkpoint, PlannedTensor("x", last.name, last.shape)))


@pytest.mark.parametrize(
    ("shape", "wanted", "largest", "kind", "reason"),
    [
        ((4, 64), "Q8_0", 1.0, "Q8_0", ""),
        ((4, 44), "Q8_0", 1.0, "F16", "44"),
        ((4, 44), "Q8_0", 1e6, "F32", "44"),
        ((4, 64), "Q8_0", 1e8, "F32", "scale"),
        ((4, 64), "F16", 65519.0, "F16", ""),
        ((4, 64), "F16", 65520.0, "F32", "beyond f16"),
        ((4, 64), "BF16", 1e30, "BF16", ""),
        ((64,), "Q8_0", 1.0, "F32", ""),
        ((64,), "F16", 1.0, "F32", ""),
    ],
)
def test_types(shape: tuple[int, ...], wanted: str, largest: float, kind: str, reason: str) -> None:
    found, why = choose_type(PlannedTensor("t", "t", shape), wanted, largest)
    assert found == kind
    assert reason in why
    assert bool(why) == bool(reason)


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
@pytest.mark.parametrize(("row", "kind"), [(96, "F16"), (128, "Q8_0")])
def test_a_head_of_short_rows_stays_f16(name: str, row: int, kind: str) -> None:
    assert choose_type(PlannedTensor(name, "t", (512, row)), "Q8_0", 1.0)[0] == kind


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.floats(-1e5, 1e5, width=32, allow_nan=False) | st.sampled_from([0.0, 1e-8, -1e-30, 3e-4]),
        min_size=64,
        max_size=64,
    )
)
def test_q8_0_is_within_half_a_step_of_its_block(values: list[float]) -> None:
    x = np.array(values, np.float32).reshape(1, 64)
    raw = encode(x, "Q8_0")
    assert len(raw) == stored_bytes(PlannedTensor("t", "t", (1, 64)), "Q8_0")
    blocks = np.frombuffer(raw, np.dtype([("d", "<f2"), ("q", "i1", (32,))]))
    for block, source in zip(blocks, x.reshape(2, 32).astype(np.float64), strict=True):
        step = np.abs(source).max() / 127
        scale_error = np.abs(block["q"].astype(float)) * max(step * 2**-11, 2**-25)
        error = np.abs(source - block["q"].astype(float) * float(block["d"]))
        assert (error <= step / 2 + scale_error + 127 * step * 2**-21).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=32, max_size=32))
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    import torch

    x = np.array(values, np.float32).reshape(1, 32)
    assert encode(x, "BF16") == torch.from_numpy(x).bfloat16().view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("value", [1.1754944e-38, 1e-40, 1e-45])
def test_q8_0_block_of_next_to_nothing_has_scale_zero(value: float) -> None:
    (block,) = np.frombuffer(
        encode(np.full((1, 32), value, np.float32), "Q8_0"), np.dtype([("d", "<f2"), ("q", "i1", 32)])
    )
    assert float(block["d"]) == 0.0
