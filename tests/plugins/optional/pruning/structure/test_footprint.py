"""Parameters and bytes that are told are those that are there."""

from pathlib import Path

import pytest

from apt.checkpoint.reader import Checkpoint
from apt.plugins.optional.pruning.decoder.blocks import sizes_of
from apt.plugins.optional.pruning.structure.footprint import Footprint


@pytest.mark.parametrize("tied", [True, False])
def test_headers_and_models_tell_alike(new_llama, tmp_path: Path, tied: bool):
    checkpoint = Checkpoint.open(new_llama(tmp_path / "m", dtype="bfloat16", tie_word_embeddings=tied))
    sizes = sizes_of(checkpoint.architecture, checkpoint.config)
    stored = Footprint.of_checkpoint(checkpoint)
    loaded = Footprint.of_model(checkpoint.load(), checkpoint.architecture, 2)
    assert stored.parameters(sizes) == loaded.parameters(sizes) == checkpoint.parameters
    assert stored.size_bytes(sizes) == loaded.size_bytes(sizes) == 2 * checkpoint.parameters
