"""Checks of a loaded model's behaviour: finite logits, the KV cache, determinism, generation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

#: Largest difference of logits between cached and full decoding, as a share of the logits' spread, in fp32.
CACHE_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, whether the model passes, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model writes greedily after its start token."""

    tokens: tuple[int, ...]
    text: str | None


def finite_logits(model: Any, ids: "torch.Tensor") -> Check:
    """Whether every logit over a row of tokens is finite.

    :param ids: int64 ``[1, tokens]``.
    """
    import torch

    with torch.inference_mode():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    bad = int((~torch.isfinite(logits)).sum())
    detail = f"{bad} of {logits.numel()} logits are NaN or infinite" if bad else f"{logits.numel()} logits"
    return Check("finite logits", not bad, detail)


def cache_equals_full(model: Any, ids: "torch.Tensor") -> Check:
    """Whether decoding token by token with the KV cache gives the logits of one full forward pass.

    :param ids: int64 ``[1, tokens]``.
    """
    import torch

    ids = ids.to(model.device)
    with torch.inference_mode():
        full = model(input_ids=ids, use_cache=False).logits[0].float()
        cache, stepwise = None, []
        for t in range(ids.shape[1]):
            out = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            stepwise.append(out.logits[0, -1].float())
    difference = float((torch.stack(stepwise) - full).abs().max())
    spread = float(full.std())
    tolerance = CACHE_TOLERANCE * max(spread, 1e-6)
    passed = difference <= tolerance
    return Check(
        "KV cache", passed, f"logits differ by {difference:.2g} at most from a full pass (allowed {tolerance:.2g})"
    )


def generate_greedily(model: Any, start: int, new_tokens: int) -> list[int]:
    """Write tokens greedily with transformers' own ``generate``; ends early at the end-of-sequence token.

    :param start: the token to begin with.
    :returns: the new tokens.
    """
    import torch

    ids = torch.tensor([[start]], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=start,
        )
    return [int(t) for t in out[0, 1:]]


def generation_checks(model: Any, start: int, new_tokens: int) -> tuple[list[Check], list[int]]:
    """Generate twice: something must come, and the same both times."""
    first, second = (generate_greedily(model, start, new_tokens) for _ in range(2))
    same = first == second
    ends = model.generation_config.eos_token_id
    written = sum(t not in (ends if isinstance(ends, list) else [ends]) for t in first)
    return [
        Check("generates", written > 0, f"{written} tokens after the start token"),
        Check("deterministic", same, "two greedy runs agree" if same else "two greedy runs differ"),
    ], first
