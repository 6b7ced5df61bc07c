"""Predicted sizes against files that the exporter writes, and against the parameters of every family."""

from collections.abc import Callable
from pathlib import Path

import pytest

from apt.checkpoint.gguf_prediction import planned_weights, predict_gguf_bytes
from apt.checkpoint.gguf_types import FILE_TYPES
from apt.checkpoint.reader import Checkpoint
from apt.store import embedded_path


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "Q8_0"])  # what the exporter writes
@pytest.mark.parametrize("model", ["tiny", "untied", "odd rows"])
def test_exported_files_are_as_large_as_predicted(
    kind: str, model: str, new_llama: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from apt.plugins.builtin.ollama.export import export_gguf
    from apt.plugins.builtin.ollama.options import ExportOptions

    path = embedded_path()
    if model != "tiny":
        odd = {"hidden_size": 144, "intermediate_size": 400, "num_key_value_heads": 4}
        sizes = odd if model == "odd rows" else {"hidden_size": 256, "intermediate_size": 512}
        path = new_llama(tmp_path / "m", tie_word_embeddings=False, dtype="bfloat16", **sizes)
    result = export_gguf(ExportOptions(model=str(path), output=tmp_path / "out", type=kind.lower()))
    predicted = predict_gguf_bytes(Checkpoint.open(path), (kind,))[kind]
    assert predicted == pytest.approx(result.path.stat().st_size, rel=0.005)


def test_types_are_ordered_and_every_one_is_predicted(llama_dir: Path) -> None:
    found = predict_gguf_bytes(Checkpoint.open(llama_dir))
    assert list(found) == list(FILE_TYPES)
    assert found["F32"] > found["F16"] >= found["Q8_0"] >= found["Q4_K_M"] >= found["Q2_K"] > 0


def test_experts_of_a_layer_are_one_tensor(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    checkpoint = Checkpoint.open(tmp_path / "m")
    weights = list(planned_weights(checkpoint, checkpoint.architecture))
    assert sum(w.rows * w.row_length for w in weights) == checkpoint.parameters
    assert sorted(w.rows for w in weights if w.place == "down") == [4 * 32, 4 * 32]
