"""A small tokenizer with a chat template, and resources that carry it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_helpers import small_model

from apt.training.contract import Resources

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    """Byte-level, so that every text can be told; ``<s>`` 0, ``</s>`` 1, then the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture
def resources(
    request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Resources:
    """A tokenizer and a model; the parameter is the model's context."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context = getattr(request, "param", 64)
    return Resources(tokenizer=tokenizer, model=small_model(vocab_size=300, max_position_embeddings=context))


@pytest.fixture
def jsonl(tmp_path: Path) -> Iterator[Callable[..., str]]:
    import json

    def write(*records: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        return str(path)

    yield write
