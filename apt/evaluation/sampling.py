"""Text sampled from a model itself, for models whose training text is not at hand."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from apt.console.progress import progress

if TYPE_CHECKING:
    import torch

#: Rows that are sampled side by side.
BATCH_ROWS: Final = 64
#: Multiplications of a decoding step below which one thread is used: the work between two of torch's barriers is then
#: shorter than the barriers, and on a busy computer the waiting costs tenfold.
ONE_THREAD_WORK: Final = 100_000_000


def start_token(config: Mapping[str, Any]) -> int:
    """Return the token that a sampled row begins with: BOS, for models without one EOS, else 0."""
    for part in (config, config.get("text_config") or {}):
        for key in ("bos_token_id", "eos_token_id"):
            value = part.get(key)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int):
                return value
    return 0


def sample_rows(model: Any, *, rows: int, window: int, seed: int, bos: int) -> "torch.Tensor":
    """Sample token rows at temperature 1 with the end-of-sequence token suppressed.

    :param model: a transformers causal language model.
    :param seed: the same seed gives the same rows on the same machine; other seeds give other rows.
    :param bos: the token that every row begins with.
    :returns: int64 ``[rows, window]`` on the CPU.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _threads_for(model), progress("sampling", rows * (window - 1), "tokens") as bar:
            parts = []
            for begin in range(0, rows, BATCH_ROWS):
                count = min(BATCH_ROWS, rows - begin)
                parts.append(_sample_batch(model, count, window, generator, bos, bar))
    finally:
        model.train(was_training)
    return torch.cat(parts)


@contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """Compute a small model's steps on the CPU with one thread."""
    import torch

    threads = torch.get_num_threads()
    small = model.device.type == "cpu" and model.num_parameters() * BATCH_ROWS < ONE_THREAD_WORK
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sample_batch(
    model: Any, rows: int, window: int, generator: "torch.Generator", bos: int, bar: Any
) -> "torch.Tensor":
    import torch

    ids = torch.full((rows, window), bos, dtype=torch.long)
    ends = end_tokens(model)
    cache = None
    for t in range(1, window):
        out = model(input_ids=ids[:, t - 1 : t].to(model.device), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1].float().cpu()
        logits[:, ends] = -torch.inf
        ids[:, t] = _draw(logits, generator)
        bar.advance(rows)
    return ids


def _draw(logits: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Draw one token a row by inverting the distribution; ``torch.multinomial`` takes four times as long.

    :param logits: fp32 ``[rows, vocabulary]``.
    """
    import torch

    cumulated = logits.softmax(dim=-1).double().cumsum(dim=-1)
    at = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def end_tokens(model: Any) -> list[int]:
    """Return the end-of-sequence ids that the model's generation config and config name."""
    found: set[int] = set()
    for config in (model.generation_config, model.config):
        value = getattr(config, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return sorted(found)
