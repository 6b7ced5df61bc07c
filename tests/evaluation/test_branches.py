"""Choices after a shared context: against every choice by itself, for every batch size."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from apt.checkpoint.reader import Checkpoint
from apt.evaluation import branches
from apt.evaluation.branches import Branches, BranchScore, score_branches
from apt.evaluation.scorers import TransformersScorer


def make_items(count: int, seed: int = 0, longest: int = 20) -> list[Branches]:
    random = Random(seed)
    items = []
    for _ in range(count):
        lengths = [random.randint(1, 7) for _ in range(4)]
        items.append(
            Branches(
                prefix=tuple(random.randrange(2, 250) for _ in range(random.randint(1, longest))),
                continuations=tuple(tuple(random.randrange(2, 250) for _ in range(n)) for n in lengths),
                unscored=tuple(random.randint(0, 1) if n > 1 else 0 for n in lengths),
            )
        )
    return items


def one_by_one(model: Any, items: list[Branches]) -> list[list[tuple[float, int, bool]]]:
    """The definition: one full pass a choice, one row at a time, no padding."""
    found = []
    for item in items:
        scores = []
        for tokens, skipped in zip(item.continuations, item.unscored, strict=True):
            ids = torch.tensor([[*item.prefix, *tokens]])
            with torch.no_grad():
                logp = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
            places = range(len(item.prefix) + skipped, ids.shape[1])
            nll = -sum(float(logp[t - 1, ids[0, t]]) for t in places)
            greedy = all(int(logp[t - 1].argmax()) == int(ids[0, t]) for t in places)
            scores.append((nll, len(tokens) - skipped, greedy))
        found.append(scores)
    return found


def assert_equal(found: list[list[BranchScore]], wanted: list[list[tuple[float, int, bool]]]) -> None:
    for scores, expected in zip(found, wanted, strict=True):
        for score, (nll, tokens, greedy) in zip(scores, expected, strict=True):
            assert score.nll == pytest.approx(nll, abs=2e-4) and (score.tokens, score.greedy) == (tokens, greedy)
        assert min(range(4), key=lambda k: scores[k].nll) == min(range(4), key=lambda k: expected[k][0])


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> Any:
    return Checkpoint.open(llama_dir).load(dtype=torch.float32)


@pytest.mark.parametrize("batch_rows", [1, 3, 16])
def test_shared_contexts_score_as_every_choice_by_itself(model: Any, batch_rows: int) -> None:
    items = make_items(13)
    assert_equal(score_branches(model, items, batch_rows=batch_rows), one_by_one(model, items))


def test_a_greedy_continuation_is_seen(model: Any) -> None:
    ids = [5, 6, 7]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    other = (ids[3], ids[4], (ids[5] + 1) % 250)
    found = score_branches(model, [Branches(tuple(ids[:3]), (tuple(ids[3:]), other), (0, 0))])
    assert [s.greedy for s in found[0]] == [True, False]


def test_contexts_are_computed_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items = make_items(10, longest=60)
    seen = {"tokens": 0, "logits": 0}
    run = TransformersScorer.tree_logits

    def counting(self: Any, ids: torch.Tensor, where: torch.Tensor, tree: Any) -> Any:
        seen["tokens"] += ids.numel()
        seen["logits"] += int(where.sum())
        return run(self, ids, where, tree)

    monkeypatch.setattr(branches, "_trees_agree", lambda *_: True)
    monkeypatch.setattr(TransformersScorer, "tree_logits", counting)
    score_branches(model, items, batch_rows=1)
    assert seen["tokens"] == sum(len(i.prefix) + sum(len(t) - 1 for t in i.continuations) for i in items)
    scored = sum(len(t) - s for i in items for t, s in zip(i.continuations, i.unscored, strict=True))
    assert seen["logits"] <= scored


def test_small_budgets_give_the_same_scores(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items = make_items(6)
    wanted = one_by_one(model, items)
    monkeypatch.setattr(branches, "LOGITS_BUDGET", 3 * 288)
    monkeypatch.setattr(branches, "CHUNK_VALUES", 2 * 288)
    assert_equal(score_branches(model, items), wanted)
    monkeypatch.setattr(branches, "MASK_BUDGET", 400)  # some rows are too long for a mask
    assert_equal(score_branches(model, items), wanted)


def test_learned_positions_and_short_windows_are_right_too() -> None:
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    mistral = MistralForCausalLM(
        MistralConfig(
            vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8,
        )
    ).eval()  # fmt: skip
    for other in (gpt, mistral):
        items = make_items(8, seed=4)
        assert_equal(score_branches(other, items), one_by_one(other, items))


def test_a_model_that_ignores_the_mask_is_scored_choice_by_choice(
    new_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Checkpoint.open(new_llama(tmp_path / "m")).load(dtype=torch.float32)
    items = make_items(5)
    wanted = one_by_one(model, items)
    monkeypatch.setattr(TransformersScorer, "tree_logits", lambda self, ids, where, tree: self.logits(ids, where))
    assert_equal(score_branches(model, items), wanted)
