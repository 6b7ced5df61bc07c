"""The mixtures of GGUF types against the sizes that published files have."""

import pytest

from apt.checkpoint.gguf_types import FILE_TYPES, Mixture, PlannedWeight, tensor_bytes, tensor_type

#: Gigabytes of Llama 3.1 8B and 70B Instruct in each type, as model cards of published files made by llama.cpp say.
PUBLISHED_8B = {
    "F32": 32.13, "Q8_0": 8.54, "Q6_K": 6.60, "Q5_K_M": 5.73, "Q5_K_S": 5.60, "Q4_K_M": 4.92, "Q4_K_S": 4.69,
    "Q4_0": 4.66, "Q3_K_L": 4.32, "Q3_K_M": 4.02, "Q3_K_S": 3.66, "Q2_K": 3.18,
}  # fmt: skip
PUBLISHED_70B = {
    "Q8_0": 74.98, "Q6_K": 57.89, "Q5_K_M": 49.95, "Q5_K_S": 48.66, "Q4_K_M": 42.52, "Q4_K_S": 40.35,
    "Q3_K_L": 37.14, "Q3_K_M": 34.27, "Q3_K_S": 30.91, "Q2_K": 26.38,
}  # fmt: skip


def llama(layers: int, hidden: int, heads: int, kv_heads: int, ff: int) -> tuple[list[PlannedWeight], Mixture]:
    """The tensors of a Llama 3 of these sizes, head not tied."""
    vocab, keys = 128_256, hidden // heads * kv_heads
    weights = [PlannedWeight("embedding", vocab, hidden), PlannedWeight("head", vocab, hidden)]
    for layer in range(layers):
        weights += [
            PlannedWeight("matrix", hidden, hidden, layer),
            PlannedWeight("matrix", keys, hidden, layer),
            PlannedWeight("attention-value", keys, hidden, layer),
            PlannedWeight("attention-output", hidden, hidden, layer),
            PlannedWeight("matrix", 2 * ff, hidden, layer),
            PlannedWeight("down", hidden, ff, layer),
            PlannedWeight("vector", 2, hidden, layer),
        ]
    return weights, Mixture(layers, heads // kv_heads, 0, head_stored=True)


@pytest.mark.parametrize(
    ("sizes", "published"),
    [((32, 4096, 32, 8, 14336), PUBLISHED_8B), ((80, 8192, 64, 8, 28672), PUBLISHED_70B)],
    ids=["8B", "70B"],
)
def test_sizes_are_those_of_published_files(sizes: tuple[int, ...], published: dict[str, float]) -> None:
    weights, mixture = llama(*sizes)
    for kind, gigabytes in published.items():
        found = sum(tensor_bytes(tensor_type(kind, w, mixture), w) for w in weights) / 1e9
        assert found == pytest.approx(gigabytes, rel=0.005), kind


def test_rows_that_a_type_cannot_hold_fall_back() -> None:
    model = Mixture(4, 1, 0, head_stored=True)
    assert tensor_type("Q4_K_S", PlannedWeight("matrix", 8, 96, 3), model) == "Q5_0"
    assert tensor_type("Q6_K", PlannedWeight("matrix", 8, 96), model) == "Q8_0"
    assert tensor_type("Q2_K", PlannedWeight("matrix", 8, 40), model) == "F16"
    assert tensor_type("Q8_0", PlannedWeight("head", 8, 64), model) == "F16"
    assert all(tensor_type(kind, PlannedWeight("vector", 1, 64), model) == "F32" for kind in FILE_TYPES)


def test_a_tied_embedding_gets_the_bits_of_a_head() -> None:
    embedding = PlannedWeight("embedding", 8, 256)
    assert tensor_type("Q4_K_M", embedding, Mixture(4, 1, 0, head_stored=False)) == "Q6_K"
    assert tensor_type("Q4_K_M", embedding, Mixture(4, 1, 0, head_stored=True)) == "Q4_K"
