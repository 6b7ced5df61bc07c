"""Schedules, optimizers, rows, attention."""

import copy
import itertools
from typing import Any

import pytest
import torch
from training_helpers import small_model, small_rows

from apt.console.errors import UsageError
from apt.training import attention, schedulers
from apt.training.attention import NAME, fast_attention, short_window_attention
from apt.training.data.rows import TokenRows, evenly, set_aside
from apt.training.optimizers import adamw, muon


def test_cosine_warms_up_and_ends_at_its_final_share() -> None:
    options = schedulers.CosineOptions(warmup_share=0.1, final_share=0.2)
    factors = [schedulers.cosine(s, 100, options) for s in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0) == factors[10]
    assert factors[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_linear_and_constant() -> None:
    options = schedulers.LinearOptions(warmup_share=0.1, decay_share=0.5)
    assert schedulers.linear(30, 100, options) == 1.0
    assert schedulers.linear(75, 100, options) == pytest.approx(0.5)
    assert schedulers.linear(100, 100, options) == 0.0
    assert schedulers.constant(99, 100, schedulers.ConstantOptions()) == 1.0


def named(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return list(model.named_parameters())


def test_adamw_decays_matrices_only() -> None:
    model = small_model()
    optimizer = adamw.build(named(model), adamw.AdamWOptions(weight_decay=0.1))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decays) == len(named(model))
    assert all(decays[id(p)] == (0.1 if p.ndim >= 2 else 0.0) for _, p in named(model))


def test_muon_takes_the_matrices_of_layers_and_nothing_else() -> None:
    model = small_model()
    optimizer = muon.build(named(model), muon.MuonOptions(lr=0.02, adamw_lr=0.001))
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in named(model):
        assert rates[id(parameter)] == (0.02 if ".layers." in name and parameter.ndim == 2 else 0.001), name


def test_muon_follows_its_groups_and_resumes_exactly() -> None:
    def step(model: Any, optimizer: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    first, second = small_model(), small_model()
    optimizer = muon.build(named(first), muon.MuonOptions())
    step(first, optimizer, 0)
    second.load_state_dict(first.state_dict())
    other = muon.build(named(second), muon.MuonOptions(lr=0.5))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for o in (optimizer, other):
        for group in o.param_groups:
            group["lr"] = 0.01
    step(first, optimizer, 1)
    step(second, other, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_split_spreads_the_rows_and_loses_none() -> None:
    rows = small_rows(10)
    training, evaluation = set_aside(rows, 3)
    assert len(training) == 7 and len(evaluation) == 3
    together = [source[i]["input_ids"].tolist() for source in (training, evaluation) for i in range(len(source))]
    assert sorted(together) == sorted(rows.ids.tolist())
    with pytest.raises(UsageError):
        set_aside(rows, 10)


@pytest.mark.parametrize("masked", [False, True])
def test_short_window_attention_equals_pytorchs(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 9, 8, dtype=torch.float64) for h in (6, 2, 2))
    allowed = torch.ones(9, 9, dtype=torch.bool).tril()
    if masked:
        allowed = allowed & ~torch.ones(9, 9, dtype=torch.bool).tril(-4)  # a sliding window
    out, _ = short_window_attention(torch.nn.Module(), q, k, v, allowed[None, None] if masked else None, 0.3)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert torch.allclose(out, wanted, atol=1e-12)


def assert_lent(model: Any, trained: Any, rows: TokenRows) -> None:
    """``trained`` (the model, or adapters around it) attends by our attention for a while, and comes to the same."""
    own = model.config._attn_implementation
    with torch.no_grad():
        plain = trained(input_ids=rows.ids).logits
        with fast_attention([trained], rows, torch.bfloat16):
            assert model.config._attn_implementation == NAME
            fast = trained(input_ids=rows.ids).logits
    assert model.config._attn_implementation == own
    assert torch.allclose(plain, fast, atol=1e-5)


def test_fast_attention_is_lent_and_taken_back() -> None:
    model, rows = small_model(), small_rows()
    own = model.config._attn_implementation
    assert_lent(model, model, rows)
    with fast_attention([model], rows, None):
        assert model.config._attn_implementation == own


def test_fast_attention_leaves_other_families_alone() -> None:
    model, rows = small_model(), small_rows()
    model.config.model_type = "gemma2"
    with fast_attention([model], rows, torch.bfloat16):
        assert model.config._attn_implementation != NAME


class UnknownLengths:
    """Rows whose length is not told."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        if name == "window":
            raise AttributeError(name)
        return getattr(self._rows, name)


def test_rows_of_unknown_length_are_judged_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    model, rows = small_model(), small_rows()
    asked: list[int] = []
    original = sdpa_attention.sdpa_attention_forward

    def attend(module: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(query.shape[2])
        return original(module, query, *arguments, **options)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", attend)
    monkeypatch.setattr(attention, "LONGEST", 12)
    with torch.no_grad():
        plain = model(input_ids=rows.ids).logits
        with fast_attention([model], UnknownLengths(rows), torch.bfloat16):
            assert model.config._attn_implementation == NAME
            short, long = (model(input_ids=rows.ids[:, :n]).logits for n in (12, 16))
    assert set(asked) == {16}
    assert torch.allclose(plain, long, atol=1e-5) and torch.allclose(plain[:, :12], short, atol=1e-5)
    with fast_attention([model], rows, torch.bfloat16):  # known, and too long
        assert model.config._attn_implementation != NAME


@pytest.mark.parametrize("longest", [8, 512])
def test_packed_documents_do_not_see_one_another(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    model, rows = small_model(), small_rows()
    monkeypatch.setattr(attention, "LONGEST", longest)
    packed = torch.cat([rows.ids[0, :7], rows.ids[1, :9]])[None]
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    with torch.no_grad(), fast_attention([model], UnknownLengths(rows), torch.bfloat16):
        together = model(input_ids=packed, position_ids=positions, use_cache=False).logits[0]
        first, second = (model(input_ids=rows.ids[i : i + 1, :n]).logits[0] for i, n in ((0, 7), (1, 9)))
    assert torch.allclose(together[:7], first, atol=1e-5)
    assert torch.allclose(together[7:], second, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft 0.21 with transformers 5.23
def test_a_model_with_adapters_is_lent_it_too() -> None:
    peft = pytest.importorskip("peft")
    model, rows = small_model(), small_rows()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert_lent(model, adapted, rows)


def test_rows_are_chosen_evenly_of_more_than_float32_can_count() -> None:
    assert evenly(2**25, 2) == [0, 2**25 - 1]
    assert evenly(3, 16) == [0, 1, 2]
