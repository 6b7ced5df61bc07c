"""Cut models go on as GGUF: what llama.cpp computes is what the cut model computes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.writer import save_model
from apt.evaluation.texts import rows_from_ids
from apt.plugins.builtin.ollama.export import export_gguf
from apt.plugins.builtin.ollama.llama_cpp import LlamaCpp
from apt.plugins.builtin.ollama.options import ExportOptions
from apt.plugins.optional.pruning.decoder.blocks import sizes_of
from apt.plugins.optional.pruning.structure.cut_to_sizes import cut_to

pytest.importorskip("gguf", reason="the plugin's dependency gguf is not installed")
pytest.importorskip("xllamacpp", reason="the optional dependency xllamacpp (llama.cpp) is not installed")

SIZES = {
    "vocab_size": 296, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
    "tie_word_embeddings": True,
}  # fmt: skip
CUTS = {
    "heads, ff and depth": {"kv_groups": 2, "ff": 64, "layers": 2},
    "query heads": {"heads_per_group": 1},
    "hidden": {"hidden": 48},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_llama_cpp_computes_what_the_cut_model_does(new_llama, tmp_path: Path, family: str, cut: str) -> None:
    dense = new_llama(tmp_path / "dense")  # for its tokenizer
    torch.manual_seed(0)
    settings = {"sliding_window": None} if family == "Mistral" else {}
    config = getattr(transformers, f"{family}Config")(**SIZES, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.2)
    model.save_pretrained(dense)
    parent = Checkpoint.open(dense)
    ids = torch.randint(2, 280, (4, 32), generator=torch.Generator().manual_seed(1))
    after = replace(sizes_of(parent.architecture, parent.config), **CUTS[cut])
    made = cut_to(
        model, parent.architecture, after, rows_from_ids(ids, source="test"), dropped=(1,)[: 3 - after.layers]
    )
    save_model(made.model, tmp_path / "cut", operation="prune", parent=parent, options={}, metrics={})
    export_gguf(ExportOptions(model=str(tmp_path / "cut"), type="f32", output=tmp_path / "gguf", name="cut"))
    with LlamaCpp(tmp_path / "gguf" / "cut.gguf") as runner:
        found = np.concatenate([chunk.copy() for chunk in runner.logits(ids[0].tolist())])
    with torch.no_grad():
        expected = made.model(ids[:1]).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
