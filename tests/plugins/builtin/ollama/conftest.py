"""Checkpoints for export: with weights large enough to decide between tokens, and with other tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt.plugins.builtin.ollama.export import export_gguf
from apt.plugins.builtin.ollama.options import ExportOptions
from apt.plugins.builtin.ollama.results import ExportResult


@pytest.fixture(autouse=True)
def needs_gguf() -> None:
    """Skip where the plugin itself could not run."""
    pytest.importorskip("gguf", reason="the plugin's dependency gguf is not installed")


@pytest.fixture
def lively(new_llama: Callable[..., Path]) -> Callable[..., Path]:
    """Make a Llama all of whose parameters are random: clear choices of tokens, no bias of zero, no norm of one."""

    def make(path: Path, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        new_llama(path, seed=seed, **{"hidden_size": 64, "intermediate_size": 96, **changes})
        model = AutoModelForCausalLM.from_pretrained(path)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in model.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(1 + 0.2 * noise if "norm" in name else noise * (0.2 if value.ndim == 2 else 0.1))
        model.to(getattr(torch, dtype)).save_pretrained(path)
        return path

    return make


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., ExportResult]:
    """Export to a directory of its own."""

    def run(model: Path, type: str = "f16", **values: Any) -> ExportResult:
        values.setdefault("output", tmp_path / f"{model.name}-{type}")
        return export_gguf(ExportOptions(model=str(model), type=type, **values))

    return run


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change top-level keys of a JSON file; ``None`` takes one away."""

    def edit(path: Path, **changes: Any) -> None:
        value = json.loads(path.read_text())
        for key, new in changes.items():
            value.pop(key, None) if new is None else value.update({key: new})
        path.write_text(json.dumps(value))

    return edit


def set_tokenizer(path: Path, tokenizer: Any, **special: str) -> None:
    """Replace a checkpoint's tokenizer by one of the tokenizers library."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


@pytest.fixture
def byte_level() -> Callable[..., Any]:
    """Train a byte-level BPE with given steps before ``ByteLevel``."""

    def train(*steps: Any, use_regex: bool, vocab_size: int = 280, normalizer: Any = None, **model: Any) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

        tokenizer = Tokenizer(models.BPE(**model))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(
            ["it's the year 2024, the 1234th. Don't! " * 4, "def f(x):\n    return x\n"], trainer
        )
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return tokenizer

    return train


@pytest.fixture
def with_tokenizer(lively: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a checkpoint with a given tokenizer."""

    def make(tokenizer: Any, **special: str) -> Path:
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        path = lively(tmp_path / "model", vocab_size=-(-size // 32) * 32, num_hidden_layers=1)
        set_tokenizer(path, tokenizer, **(special or {"bos_token": "<s>", "eos_token": "</s>"}))
        return path

    return make


@pytest.fixture
def sentencepiece() -> Callable[..., Any]:
    """Make a BPE with byte fallback as it is converted from SentencePiece: all ways to form each piece, by score."""

    def make(*, pieces: str = "▁t he in ▁the er on ▁a re here ▁there", prepend: bool = True) -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

        order = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces.split()]
        order += [*"▁abcdefghijklmnopqrstuvwxyz.,"]
        vocab = {piece: number for number, piece in enumerate(order)}
        merges = [
            (piece[:cut], piece[cut:])
            for piece in pieces.split()
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        steps = [normalizers.Prepend("▁")] if prepend else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in order[:3]])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return tokenizer

    return make
