"""Checks of behaviour: sound models pass, models with the fault in question do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.evaluation.invariance import batch_invariance, padding_invariance, stops_at_end
from apt.evaluation.tokenizer_checks import round_trip, template_renders

ROW = torch.arange(2, 26)[None]


@pytest.fixture
def model(new_llama: Callable[..., Path], tmp_path: Path) -> Any:
    return Checkpoint.open(new_llama(tmp_path / "m")).load(dtype=torch.float32)


@pytest.fixture
def tokenizer(new_llama: Callable[..., Path], tmp_path: Path) -> Any:
    return Checkpoint.open(new_llama(tmp_path / "t")).tokenizer()


def test_a_sound_model_depends_on_no_neighbour(model: Any) -> None:
    assert batch_invariance(model, ROW).passed
    assert padding_invariance(model, ROW, pad=1).passed


def test_rows_that_leak_into_one_another_are_seen(model: Any) -> None:
    def leak(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        return out + 0.5 * (out.mean(dim=0, keepdim=True) - out)

    model.model.norm.register_forward_hook(leak)
    assert not batch_invariance(model, ROW).passed


def test_padding_that_is_not_masked_is_seen(model: Any) -> None:
    run = model.forward

    def unmasked(attention_mask: Any = None, **inputs: Any) -> Any:
        return run(attention_mask=None if attention_mask is None else torch.ones_like(attention_mask), **inputs)

    model.forward = unmasked
    assert not padding_invariance(model, ROW, pad=1).passed


def test_generation_must_stop_at_every_end(model: Any) -> None:
    assert stops_at_end(model, 0, 1).passed
    found = stops_at_end(model, 0, 7)  # the tokenizer names another one than the config
    assert not found.passed and "the tokenizer's end-of-sequence token 7" in found.detail
    assert not stops_at_end(model, 0, 5000).passed
    model.generation_config.eos_token_id = None
    found = stops_at_end(model, 0, None)
    assert not found.passed and "the config's" in found.detail
    model.config.eos_token_id = None
    assert stops_at_end(model, 0, None).passed


def test_text_must_come_back(tokenizer: Any) -> None:
    found = round_trip(tokenizer)
    assert found.passed and found.detail == "exact: English, Chinese, emoji, white space"
    tokenizer.decode = lambda ids, **_: "The quick"
    assert not round_trip(tokenizer).passed


def test_what_a_vocabulary_does_not_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        c: i + 1 for i, c in enumerate(sorted(set("The quick brown fox doesn't jump over 13 lazy dogs; it's 5.5 °C.")))
    }
    letters = Tokenizer(models.BPE({"<unk>": 0, **words}, [], unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    found = round_trip(PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>"))
    assert found.passed and "Chinese not in the vocabulary" in found.detail and "exact: English" in found.detail


def test_a_template_must_render_what_is_said(tokenizer: Any) -> None:
    assert template_renders(tokenizer).detail == "none"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    assert template_renders(tokenizer).passed
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert "leaves out" in template_renders(tokenizer).detail
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer.chat_template = endless
    assert "more time or memory" in template_renders(tokenizer).detail
    tokenizer.chat_template = "{% for m in messages %}"
    found = template_renders(tokenizer)
    assert not found.passed and "does not render" in found.detail
