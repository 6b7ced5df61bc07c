"""Where the bytes are, what they become, and what fits."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from apt.checkpoint.size_report import CONTEXTS, size_facts


def test_bytes_equal_the_safetensors_library(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    path = new_llama(tmp_path / "m", dtype="bfloat16", tie_word_embeddings=False)
    found = size_facts(str(path))
    sizes: Counter[str] = Counter()
    with safe_open(path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
            tensor = file.get_tensor(name)
            sizes[str(tensor.dtype)] += tensor.numel() * tensor.element_size()
    assert found.bytes_by_dtype == {"BF16": sizes["torch.bfloat16"]}
    assert found.tensor_bytes == sum(found.bytes_by_component.values()) == sizes.total()
    assert found.size_bytes == (path / "model.safetensors").stat().st_size
    assert found.tables()[0].rows[-1][0] == "all"


def test_layers_add_up_and_equal_ones_are_one_row(llama_dir: Path) -> None:
    found = size_facts(str(llama_dir))
    assert list(found.bytes_by_layer) == ["0", "1", "2", "outside"]
    assert sum(found.bytes_by_layer.values()) == found.tensor_bytes
    layers = next(t for t in found.tables() if t.title == "Layers")
    assert [row[0] for row in layers.rows] == ["0–2", "outside"]


def test_the_memory_table_is_weights_and_cache(llama_dir: Path) -> None:
    found = size_facts(str(llama_dir), contexts=[16, 64], batches=[1, 3])
    assert {(c.context_tokens, c.batch_rows) for c in found.memory} == {(16, 1), (16, 3), (64, 1), (64, 3)}
    for cell in found.memory:
        # Two layers' worth of keys and values for three layers: 2 KV heads of 8 values, 2 bytes each.
        assert cell.kv_bytes == 3 * 2 * 2 * 8 * 2 * cell.context_tokens * cell.batch_rows
        assert cell.total_bytes == cell.weight_bytes + cell.kv_bytes and cell.fits is None
    own = {c.context_tokens for c in size_facts(str(llama_dir)).memory}
    assert own == {128} and all(n > 128 for n in CONTEXTS)


def test_what_fits_is_the_most_that_fits(llama_dir: Path) -> None:
    token = 3 * 2 * 2 * 8 * 2
    weights = {c.precision: c.weight_bytes for c in size_facts(str(llama_dir)).memory}
    limit = weights["bf16"] + 100 * token
    found = size_facts(str(llama_dir), memory_bytes=limit)
    rooms = {room.precision: room for room in found.room}
    assert (rooms["fp32"].weights_fit, rooms["fp32"].longest_context_tokens) == (False, 0)
    assert (rooms["bf16"].longest_context_tokens, rooms["bf16"].largest_batch_rows) == (100, 0)
    assert rooms["q4"].longest_context_tokens == 128
    assert rooms["q4"].largest_batch_rows == (limit - weights["q4"]) // (128 * token)
    assert any("What fits" in table.title for table in found.tables())


def test_an_unknown_family_has_no_figure_that_is_guessed(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    path = new_llama(tmp_path / "m")
    config = (path / "config.json").read_text().replace('"llama"', '"newfangled"')
    (path / "config.json").write_text(config)
    found = size_facts(str(path), memory_bytes=1 << 30)
    assert (found.bytes_by_layer, found.gguf_bytes, found.memory, found.room) == ({}, {}, (), ())


@pytest.mark.parametrize("limit", [1, 1 << 60])
def test_limits_beyond_reason(limit: int, llama_dir: Path) -> None:
    found = size_facts(str(llama_dir), memory_bytes=limit)
    assert {room.weights_fit for room in found.room} == {limit > 1}
    assert all(cell.fits is (limit > 1) for cell in found.memory)
