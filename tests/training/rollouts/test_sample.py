"""Sampling: repeatable, ended where the model ends, by the right chances, without a neighbour's influence."""

from typing import Any

import pytest
import torch
from training_helpers import VOCAB, small_model

from apt.training.attention import NAME, fast_attention
from apt.training.contract import Resources
from apt.training.rollouts.sample import SampleOptions, SampleRollout, end_ids


def write(model: Any, prompts: list[list[int]], seed: int = 0, **options: Any) -> Any:
    backend = SampleRollout(SampleOptions(**options), Resources())
    rng = torch.Generator().manual_seed(seed)
    return backend.generate(model, [torch.tensor(p) for p in prompts], rng=rng)


def continuations(rollout: Any) -> list[list[int]]:
    return [ids[labels != -100].tolist() for ids, labels in zip(rollout.ids, rollout.labels, strict=True)]


PROMPTS = [[5, 6, 7], [9, 10], [1, 2, 3], [4]]


def test_prompts_come_first_and_are_not_counted() -> None:
    rollout = write(small_model(), PROMPTS, max_new_tokens=6)
    for row, prompt in enumerate(PROMPTS):
        assert rollout.ids[row, : len(prompt)].tolist() == prompt
        assert (rollout.labels[row, : len(prompt)] == -100).all()
    assert rollout.ids.shape == rollout.labels.shape and rollout.ids.dtype == torch.int64


def test_the_same_generator_gives_the_same_tokens_whatever_else_is_random() -> None:
    model = small_model(attention_dropout=0.5).train()
    first = write(model, PROMPTS, max_new_tokens=8)
    torch.manual_seed(99)
    second = write(model, PROMPTS, max_new_tokens=8)
    other = write(model, PROMPTS, max_new_tokens=8, seed=1)
    assert torch.equal(first.ids, second.ids) and torch.equal(first.labels, second.labels)
    assert not torch.equal(first.ids[:, :8], other.ids[:, :8])
    assert model.training


def test_neighbours_of_another_length_change_nothing() -> None:
    model = small_model()
    whole = continuations(write(model, PROMPTS, max_new_tokens=8))
    # The first prompt has the first numbers of the generator, alone or not.
    assert continuations(write(model, PROMPTS[:1], max_new_tokens=8)) == whole[:1]
    changed = [PROMPTS[0], [11, 12, 13, 14], *PROMPTS[2:]]
    assert [c for i, c in enumerate(continuations(write(model, changed, max_new_tokens=8))) if i != 1] == [
        c for i, c in enumerate(whole) if i != 1
    ]


def test_the_cache_gives_what_a_whole_pass_gives() -> None:
    model = small_model().eval()
    rollout = write(model, PROMPTS, max_new_tokens=10, temperature=0.01)
    for prompt, new in zip(PROMPTS, continuations(rollout), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + new])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == new


def test_the_lent_attention_is_put_back_for_sampling() -> None:
    model = small_model()
    plain = write(model, PROMPTS, max_new_tokens=8)

    class Window:
        window = 16

        def __len__(self) -> int:
            return 1

    with fast_attention([model], Window(), torch.bfloat16):  # type: ignore[arg-type]
        assert model.config._attn_implementation == NAME
        assert torch.equal(write(model, PROMPTS, max_new_tokens=8).ids, plain.ids)
        assert model.config._attn_implementation == NAME


def test_a_text_ends_at_its_end_and_is_cut_off_else() -> None:
    model = small_model()
    model.generation_config.eos_token_id = [3, 7]
    assert end_ids(model) == {3, 7}
    rollout = write(model, [[5]] * 40, max_new_tokens=30)
    ends = 0
    for row, new in enumerate(continuations(rollout)):
        ended = new[-1] in (3, 7)
        ends += ended
        assert bool(rollout.clipped[row]) is not ended
        assert not {3, 7} & set(new[:-1])
        assert ended or len(new) == 30
    assert 5 < ends < 40


def test_the_models_positions_are_not_exceeded() -> None:
    rollout = write(small_model(max_position_embeddings=12), [list(range(10)), [1]], max_new_tokens=30)
    assert [len(c) for c in continuations(rollout)] == [2, 11]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tokens_are_drawn_by_their_chances(top_p: float) -> None:
    model = small_model().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from even
        chances = (model(input_ids=torch.tensor([[5]])).logits[0, -1].double() / 1.5).softmax(-1)
    order = chances.argsort(descending=True)
    kept = order[: int((chances[order].cumsum(0) - chances[order] < top_p).sum())]
    wanted = torch.zeros(VOCAB, dtype=torch.float64)
    wanted[kept] = chances[kept] / chances[kept].sum()
    n = 4000
    rollout = write(model, [[5]] * n, max_new_tokens=1, temperature=1.5, top_p=top_p)
    seen = torch.bincount(rollout.ids[:, 1], minlength=VOCAB).double() / n
    assert float(seen[wanted == 0].sum()) == 0.0
    spread = (wanted * (1 - wanted) / n).sqrt().clamp_min(1e-9)
    assert float(((seen - wanted) / spread).abs().max()) < 5.0
