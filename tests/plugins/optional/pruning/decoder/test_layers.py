"""Layers one at a time, and the frame around them, against the whole model in every family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from apt.checkpoint.loading import quiet_transformers
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError
from apt.evaluation.scoring import score_rows
from apt.evaluation.texts import Rows, rows_from_ids
from apt.plugins.optional.pruning.decoder.layers import CheckpointLayers, LayerSource, ModelLayers
from apt.plugins.optional.pruning.decoder.trace import calibration_batches

BASE = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("LlamaConfig", {**BASE, "tie_word_embeddings": True}),
    "llama, biases and scaled positions": (
        "LlamaConfig", {**BASE, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE},
    ),
    "mistral, sliding": ("MistralConfig", {**BASE, "sliding_window": 16}),
    "qwen2, some layers sliding": (
        "Qwen2Config", {**BASE, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", BASE),
    "gemma2": ("Gemma2Config", {**BASE, "sliding_window": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {**BASE, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "phi3": ("Phi3Config", BASE),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 288, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "bos_token_id": 0,
         "eos_token_id": 1},
    ),
}  # fmt: skip


def save(name: str, path: Path, *, dtype: torch.dtype = torch.float32) -> Checkpoint:
    kind, settings = CONFIGS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases that are not all one or zero
            parameter.data += 0.3 * torch.randn_like(parameter)
    with quiet_transformers():
        model.to(dtype).save_pretrained(path)
    return Checkpoint.open(path)


@pytest.fixture(scope="module")
def rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(20, 65, (40,), generator=generator)
    return rows_from_ids(torch.randint(2, 288, (40, 64), generator=generator), source="random", lengths=lengths)


@torch.no_grad()
def run(source: LayerSource, rows: Rows, *, stored: bool = False) -> tuple[list[torch.Tensor], torch.Tensor]:
    frame, batches = source.frame(), calibration_batches(rows)
    entries = [frame.enter(batch.ids, source="random") for batch in batches]
    streams = [entry.stream for entry in entries]
    for index in range(source.layers):
        layer = source.layer(index, stored=stored)
        streams = [layer(s, **e.calls[index]) for s, e in zip(streams, entries, strict=True)]
    return streams, frame.row_nats(batches, streams)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_layer_at_a_time_gives_what_the_whole_model_gives(name: str, rows: Rows, tmp_path: Path):
    checkpoint = save(name, tmp_path)
    model = checkpoint.load(dtype=torch.float32)
    wanted = torch.tensor(score_rows(model, rows).nll)
    batch = calibration_batches(rows)[0]
    with torch.no_grad():
        inside = model(input_ids=batch.ids, output_hidden_states=True).hidden_states
    results = [
        run(source, rows) for source in (CheckpointLayers(checkpoint), ModelLayers(model, checkpoint.architecture))
    ]
    for _streams, nats in results:
        assert (nats - wanted).abs().max() < 1e-4
    for one, other in zip(*(streams for streams, _ in results), strict=True):
        assert torch.equal(one, other)
    assert inside[0].shape == results[0][0][0].shape


def test_the_model_in_memory_is_not_changed(llama_dir: Path, rows: Rows):
    checkpoint = Checkpoint.open(llama_dir)
    model: Any = checkpoint.load(dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [id(module) for module in model.modules()]
    source = ModelLayers(model, checkpoint.architecture)
    run(source, rows)
    source.layer(0).mlp.down_proj.weight.data.zero_()
    assert [id(module) for module in model.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_stored_weights_give_the_same_products(rows: Rows, tmp_path: Path):
    checkpoint = save("llama, biases and scaled positions", tmp_path, dtype=torch.bfloat16)
    source = CheckpointLayers(checkpoint)
    layer: Any = source.layer(1, stored=True)
    assert layer.mlp.up_proj.weight.dtype == torch.bfloat16
    for one, other in zip(run(source, rows)[0], run(source, rows, stored=True)[0], strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_the_head_goes_over_the_vocabulary_in_slices(llama_dir: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch):
    source = CheckpointLayers(Checkpoint.open(llama_dir))
    whole = run(source, rows)[1]
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.frame._SLICE_VALUES", 1000)
    monkeypatch.setattr("apt.plugins.optional.pruning.decoder.frame._POSITIONS", 100)
    assert (run(source, rows)[1] - whole).abs().max() < 1e-4


def test_ids_outside_the_vocabulary_are_refused(llama_dir: Path):
    frame = CheckpointLayers(Checkpoint.open(llama_dir)).frame()
    with pytest.raises(BadInputError, match="'text' has token ids outside the model's vocabulary of 288"):
        frame.enter(torch.tensor([[0, 288]]), source="text")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"intermediate_size": 96}, r"is \[64, 32\], the config asks for \[96, 32\]"),
        ({"num_hidden_layers": 4}, "missing keys, the first 'model.layers.3"),
        ({"num_hidden_layers": 2}, "9 unexpected keys, the first 'model.layers.2.input_layernorm.weight'"),
        ({"attention_bias": True}, "missing keys, the first 'model.layers.0.self_attn.q_proj.bias'"),
        ({"model_type": "qwen3"}, "missing keys, the first 'model.layers.0.self_attn.q_norm.weight'"),
    ],
)
def test_a_config_of_another_model_is_refused_before_a_layer_is_read(
    new_llama, tmp_path: Path, change: dict[str, Any], told: str
):
    path = new_llama(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadInputError, match=told):
        CheckpointLayers(Checkpoint.open(path))
