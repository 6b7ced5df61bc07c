"""Packed documents: what they see of one another, by family and by attention; families that mix them are refused."""

from typing import Any

import pytest
import torch
from training_helpers import small_model, small_rows
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from apt.console.errors import UnsupportedError
from apt.training.attention import NAME, fast_attention
from apt.training.contract import IGNORED, Resources
from apt.training.data.encoding import Encoded
from apt.training.data.isolation import check_isolation
from apt.training.data.layout import packed
from apt.training.data.rows import collate
from apt.training.forward import base_of
from apt.training.losses.ce import CrossEntropy, CrossEntropyOptions

DOCUMENTS = [[5, 7, 9, 11], [6, 8, 10, 12, 14, 16, 18], [3, 4]]
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def qwen2() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL))


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def packed_batch() -> dict[str, Any]:
    """Three documents in one row, and beside it a shorter row, so that one of them is padded."""
    pieces = [Encoded(ids, [IGNORED, *ids[1:]]) for ids in DOCUMENTS]
    return dict(collate([packed(pieces), packed(pieces[:2])]))


def run(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits
    return logits


@pytest.mark.parametrize(
    ("make", "attention"),
    [
        (small_model, "sdpa"), (small_model, "eager"), (small_model, NAME),
        (qwen2, "sdpa"), (qwen2, "eager"), (qwen2, NAME),
        (gpt2, "sdpa"), (gpt2, "eager"),
    ],
)  # fmt: skip
def test_documents_in_one_row_are_as_if_alone(make: Any, attention: str) -> None:
    model, batch = make().eval(), packed_batch()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in DOCUMENTS])
        if attention == NAME:
            with fast_attention([model], small_rows(), torch.bfloat16):
                assert model.config._attn_implementation == NAME
                together = run(model, batch)
        else:
            model.set_attn_implementation(attention)
            together = run(model, batch)
    assert torch.allclose(together[0], alone, atol=1e-5)
    assert torch.allclose(together[1, :11], alone[:11], atol=1e-5)


def test_the_loss_of_a_packed_row_is_that_of_its_documents_with_its_gradients() -> None:
    def loss_and_gradients(batches: list[dict[str, Any]]) -> tuple[float, list[torch.Tensor]]:
        model = small_model()
        loss = CrossEntropy(CrossEntropyOptions(), Resources())
        total = 0.0
        for batch in batches:
            out = loss(model, batch, rng=torch.Generator(), step=0)
            out.loss_sum.backward()
            total += float(out.loss_sum.detach())
        return total, [p.grad for p in model.parameters()]

    pieces = [Encoded(ids, [IGNORED, *ids[1:]]) for ids in DOCUMENTS]
    together, packed_gradients = loss_and_gradients([dict(collate([packed(pieces)]))])
    alone, gradients = loss_and_gradients([dict(collate([packed([piece])])) for piece in pieces])
    assert together == pytest.approx(alone, rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(packed_gradients, gradients, strict=True))


@pytest.mark.parametrize("make", [small_model, qwen2, gpt2])
def test_families_that_keep_documents_apart_may_be_packed(make: Any) -> None:
    model = make().train()
    check_isolation(model)
    assert model.training


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (
            lambda: MambaForCausalLM(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=4)),
            "mamba",
        ),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4)), "bloom"),
        (lambda: Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])), "lfm2"),
    ],
    ids=["mamba", "bloom", "lfm2"],
)
def test_families_that_mix_them_are_refused(make: Any, family: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match=f"a {family} model does not keep documents"):
        check_isolation(make())


def test_a_model_without_positions_is_refused() -> None:
    model = small_model()
    base = base_of(model)
    forward = base.forward
    base.forward = lambda input_ids, use_cache=False: forward(input_ids=input_ids, use_cache=use_cache)
    with pytest.raises(UnsupportedError, match="packed"):
        check_isolation(model)
