"""Speed of a model in this process: reading a prompt, and writing token by token with the KV cache."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second over repeated measurements: the median, the slowest and the fastest."""

    tokens_per_second: float
    low: float
    high: float

    def format(self) -> str:
        """Return ``median [low, high]`` for a table."""
        return f"{self.tokens_per_second:.0f} [{self.low:.0f}, {self.high:.0f}]"


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates of one sequence at a time.

    :param prefill: tokens of a prompt read per second; ``decode``: tokens written per second after it.
    :param threads: threads that torch computes with.
    """

    prefill: Rate
    decode: Rate
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int
    device: str
    dtype: str


def measure_speed(model: Any, *, prompt_tokens: int = 256, new_tokens: int = 32, repeats: int = 5) -> Speed:
    """Measure a model's speed with one sequence; the first of the runs warms up and does not count.

    The prompt's ids are fixed and do not matter. The two together are cut to the model's context.

    :param model: a transformers causal language model.
    """
    import torch

    context = getattr(model.config, "max_position_embeddings", None) or prompt_tokens + new_tokens
    new_tokens = max(1, min(new_tokens, context // 4))
    prompt_tokens = max(1, min(prompt_tokens, context - new_tokens))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt = (torch.arange(prompt_tokens, device=model.device)[None] * 7 + 3) % vocabulary
    reading, writing = [], []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for _ in range(repeats + 1):
                reading.append(_seconds(model, _prefill, prompt))
                writing.append(_seconds(model, _decode, _prefill(model, prompt), prompt, new_tokens))
    finally:
        model.train(was_training)
    return Speed(
        prefill=_rate(prompt_tokens, reading[1:]),
        decode=_rate(new_tokens, writing[1:]),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        threads=torch.get_num_threads(),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _prefill(model: Any, prompt: "torch.Tensor") -> Any:
    return model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values


def _decode(model: Any, cache: Any, prompt: "torch.Tensor", new_tokens: int) -> None:
    token = prompt[:, -1:]
    for _ in range(new_tokens):
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)


def _seconds(model: Any, work: Callable[..., Any], *arguments: Any) -> float:
    """Time a piece of work; on an accelerator until it has really ended."""
    import torch

    accelerated = model.device.type != "cpu"
    if accelerated:
        torch.accelerator.synchronize()
    begun = time.perf_counter()
    work(model, *arguments)
    if accelerated:
        torch.accelerator.synchronize()
    return max(time.perf_counter() - begun, 1e-9)


def _rate(tokens: int, seconds: list[float]) -> Rate:
    rates = [tokens / s for s in seconds]
    return Rate(statistics.median(rates), min(rates), max(rates))
