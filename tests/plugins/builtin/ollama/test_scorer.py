"""The scorer: llama.cpp's logits at the chosen positions are transformers' own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.scorers import TransformersScorer
from apt.plugins.builtin.ollama.export import export_gguf
from apt.plugins.builtin.ollama.options import ExportOptions

pytest.importorskip("xllamacpp")


def test_logits_and_greedy_text_are_the_checkpoints(new_llama: Callable[..., Path], tmp_path: Path) -> None:
    from apt.plugins.builtin.ollama.scorer import LlamaCppScorer

    path = new_llama(tmp_path / "m", hidden_size=64, intermediate_size=128, max_position_embeddings=256)
    gguf = export_gguf(ExportOptions(model=str(path), output=tmp_path / "gguf", type="f32")).path
    theirs = TransformersScorer(Checkpoint.open(path).load(dtype=torch.float32))
    ours = LlamaCppScorer.open(gguf)
    try:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(2, 280, (3, 150), generator=generator)  # more than one chunk
        where = torch.rand(3, 150, generator=generator) < 0.2
        where[1] = False
        with theirs.running(), ours.running():
            found, wanted = ours.logits(ids, where), theirs.logits(ids, where)
            prompts = [[0, 5, 6, 7], [0, 9]]
            assert ours.greedy(prompts, 6, [1]) == theirs.greedy(prompts, 6, [1])
        assert found.shape == wanted.shape == (int(where.sum()), 288)
        assert torch.allclose(found, wanted, atol=2e-4)
        assert (ours.vocabulary, ours.context) == (288, 256) and "llama.cpp" in ours.runtime
    finally:
        ours.close()
