"""Small models and rows for the training tests."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from apt.training.config import TrainConfig, parse_config
from apt.training.data.rows import TokenRows

VOCAB = 96


def small_model(seed: int = 0, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    settings.update(changes)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings))


def small_rows(n: int = 24, window: int = 16, seed: int = 1) -> TokenRows:
    """Rows that can be learned: each counts up from a random start in small steps."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCAB, (n, 1), generator=generator)
    stride = torch.randint(1, 4, (n, 1), generator=generator)
    ids = (start + stride * torch.arange(window)) % VOCAB
    labels = ids.clone()
    labels[:, 0] = -100
    return TokenRows(ids, labels)


def small_config(**train: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "steps": 6, "batch_rows": 4, "eval_every": 3, "eval_rows": 4, "precision": "fp32",
        "optimizer": {"name": "adamw", "lr": 0.003},
    }  # fmt: skip
    settings.update(train)
    return parse_config({"train": settings})
