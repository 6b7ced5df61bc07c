"""Speed of a model in this process: reading a prompt, and writing token by token with the KV cache."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.console.progress import progress
from apt.evaluation.forward import evaluating
from apt.evaluation.statistics import Estimate, median_estimate

if TYPE_CHECKING:
    import torch

#: Tokens written to warm up, and at least in every round.
_WARM_TOKENS: Final = 4
#: So many rounds tell an interval of the median.
_FEWEST_ROUNDS: Final = 6


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


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """Two models measured in turn in one process, so that whatever else the machine does falls on both.

    :param prefill_ratio: the second model's rate over the first's: median over the rounds with its 95 % interval;
        ``decode_ratio`` likewise.
    """

    first: Speed
    second: Speed
    prefill_ratio: Estimate
    decode_ratio: Estimate


def measure_speed(model: Any, *, prompt_tokens: int = 256, new_tokens: int = 32, repeats: int = 5) -> Speed:
    """Measure a model's speed with one sequence; the first of the runs warms up and does not count.

    The prompt's ids are fixed and do not matter. The two together are cut to the model's context.

    :param model: a transformers causal language model.
    """
    prompt_tokens, new_tokens = _fitting([model], prompt_tokens, new_tokens)
    with evaluating([model]):
        times = [_round(model, prompt_tokens, new_tokens) for _ in range(repeats + 1)][1:]
    return _speed(model, times, prompt_tokens, new_tokens)


def compare_speed(
    first: Any, second: Any, *, prompt_tokens: int = 256, new_tokens: int = 32, rounds: int = 15, seconds: float = 60.0
) -> SpeedComparison:
    """Measure two models in alternating rounds, each after a warm-up that does not count.

    :param new_tokens: at most; fewer, and fewer rounds (at least six), where the whole would take longer than
        ``seconds``.
    """
    models = [first, second]
    prompt_tokens, new_tokens = _fitting(models, prompt_tokens, new_tokens)
    with evaluating(models):
        warm = [_round(model, prompt_tokens, min(_WARM_TOKENS, new_tokens)) for model in models]
        reading = sum(t[0] for t in warm)
        token = sum(t[1] for t in warm) / min(_WARM_TOKENS, new_tokens)
        new_tokens = min(new_tokens, max(_WARM_TOKENS, int((seconds / _FEWEST_ROUNDS - reading) / token)))
        rounds = min(rounds, max(_FEWEST_ROUNDS, int(seconds / (reading + token * new_tokens))))
        times: list[list[tuple[float, float]]] = [[], []]
        with progress("measuring speed", rounds, "rounds") as bar:
            for number in range(rounds):
                for which in (0, 1) if number % 2 == 0 else (1, 0):
                    times[which].append(_round(models[which], prompt_tokens, new_tokens))
                bar.advance()
    prefill, decode = (median_estimate([a[k] / b[k] for a, b in zip(*times, strict=True)]) for k in (0, 1))
    speeds = [_speed(m, t, prompt_tokens, new_tokens) for m, t in zip(models, times, strict=True)]
    return SpeedComparison(speeds[0], speeds[1], prefill, decode)


def _fitting(models: Sequence[Any], prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """Cut both to the shortest context."""
    wanted = prompt_tokens + new_tokens
    context = min(getattr(model.config, "max_position_embeddings", None) or wanted for model in models)
    new_tokens = max(1, min(new_tokens, context // 4))
    return max(1, min(prompt_tokens, context - new_tokens)), new_tokens


def _round(model: Any, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Return the seconds of reading the prompt and of writing after it."""
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt = (torch.arange(prompt_tokens, device=model.device)[None] * 7 + 3) % vocabulary
    reading, cache = _timed(model, _prefill, prompt)
    writing, _ = _timed(model, _decode, cache, prompt, new_tokens)
    return reading, writing


def _speed(model: Any, times: Sequence[tuple[float, float]], prompt_tokens: int, new_tokens: int) -> Speed:
    import torch

    return Speed(
        prefill=_rate(prompt_tokens, [t[0] for t in times]),
        decode=_rate(new_tokens, [t[1] for t in times]),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=len(times),
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


def _timed(model: Any, work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Time a piece of work, on an accelerator until it has really ended; return the seconds and what it gave."""
    import torch

    accelerated = model.device.type != "cpu"
    if accelerated:
        torch.accelerator.synchronize()
    begun = time.perf_counter()
    result = work(model, *arguments)
    if accelerated:
        torch.accelerator.synchronize()
    return max(time.perf_counter() - begun, 1e-9), result


def _rate(tokens: int, seconds: list[float]) -> Rate:
    rates = [tokens / s for s in seconds]
    return Rate(statistics.median(rates), min(rates), max(rates))
