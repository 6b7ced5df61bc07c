"""Checks that a model's figures do not depend on what is computed beside them, and that its text ends in time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apt.evaluation.behaviour import CACHE_TOLERANCE, Check
from apt.evaluation.sampling import end_tokens

if TYPE_CHECKING:
    import torch

#: Rows that are compared alone and in company; a padding of half a row shows a position that was not shifted.
_PADDING_SHARE = 2
#: The step of greedy text at which an end token is forced.
_FORCED_STEP = 2


def batch_invariance(model: Any, ids: "torch.Tensor") -> Check:
    """Whether a row's logits are the same alone and beside another row of its length.

    :param ids: int64 ``[1, tokens]``.
    """
    import torch

    ids = ids.to(model.device)
    with torch.inference_mode():
        alone = model(input_ids=ids, use_cache=False).logits[0].float()
        together = model(input_ids=torch.cat([ids.flip(1), ids]), use_cache=False).logits[1].float()
    return _compared("batch", "in a batch", alone, together)


def padding_invariance(model: Any, ids: "torch.Tensor", pad: int) -> Check:
    """Whether a row's logits are the same alone and with padding that is masked, on either side.

    :param ids: int64 ``[1, tokens]``; :param pad: the token that padding is made of.
    """
    import torch

    ids = ids.to(model.device)
    length = ids.shape[1]
    extra = torch.full((1, max(1, length // _PADDING_SHARE)), pad, device=model.device)
    seen, unseen = torch.ones_like(ids), torch.zeros_like(extra)
    with torch.inference_mode():
        alone = model(input_ids=ids, use_cache=False).logits[0].float()
        right = model(
            input_ids=torch.cat([ids, extra], 1), attention_mask=torch.cat([seen, unseen], 1), use_cache=False
        ).logits[0, :length]
        mask = torch.cat([unseen, seen], 1)
        left = model(
            input_ids=torch.cat([extra, ids], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),  # as generate() gives them
            use_cache=False,
        ).logits[0, -length:]
    worst = max((right.float(), left.float()), key=lambda logits: float((logits - alone).abs().max()))
    return _compared("padding", "with padding", alone, worst)


def _compared(name: str, how: str, alone: "torch.Tensor", other: "torch.Tensor") -> Check:
    difference = float((alone - other).abs().max())
    tolerance = CACHE_TOLERANCE * max(float(alone.std()), 1e-6)
    return Check(
        name, difference <= tolerance, f"logits differ by {difference:.2g} at most {how} (allowed {tolerance:.2g})"
    )


def stops_at_end(model: Any, start: int, tokenizer_end: int | None) -> Check:
    """Whether generation stops once an end-of-sequence token is written.

    The token is forced at the third step, for each one that the generation config, the config or the tokenizer names.

    :param tokenizer_end: the tokenizer's end-of-sequence id, if there is one.
    """
    ends = end_tokens(model)
    if tokenizer_end is not None and tokenizer_end not in ends:
        ends = [*ends, tokenizer_end]
    if not ends:
        return Check("stops at end", True, "neither config nor tokenizer names an end-of-sequence token")
    known = int(model.get_input_embeddings().weight.shape[0])
    beyond = [e for e in ends if not 0 <= e < known]
    if beyond:
        return Check("stops at end", False, f"end-of-sequence token {beyond[0]} is outside the vocabulary of {known}")
    for end in ends:
        written = _forced(model, start, end, ends)
        if len(written) != _FORCED_STEP + 1:
            who = "the tokenizer's" if end == tokenizer_end else "the config's"
            return Check("stops at end", False, f"generation goes on after {who} end-of-sequence token {end}")
    return Check("stops at end", True, f"at {', '.join(map(str, ends))}")


def _forced(model: Any, start: int, end: int, ends: Sequence[int]) -> list[int]:
    """Return greedy tokens with ``end`` forced at one step and no end token before it."""
    import torch
    from transformers import LogitsProcessorList

    def force(found: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, list(ends)] = -torch.inf
        if found.shape[1] == 1 + _FORCED_STEP:
            scores[:, end] = scores[:, end].new_tensor(1e4)
        return scores

    ids = torch.tensor([[start]], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_FORCED_STEP + 4,
            do_sample=False,
            num_beams=1,
            pad_token_id=start,
            logits_processor=LogitsProcessorList([force]),
        )
    return [int(t) for t in out[0, 1:]]
