"""A model's own continuations, sampled token by token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from apt.training.attention import NAME, attention_of
from apt.training.contract import IGNORED, Resources, Rollout
from apt.training.forward import evaluating
from apt.training.sections import Section


class SampleOptions(Section):
    """Options of ``sample``."""

    name: Literal["sample"] = Field(default="sample", description="The component.")
    temperature: float = Field(default=1.0, gt=0.0, le=100.0, description="Divides the logits.")
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Only the likeliest tokens that hold this much of the mass are drawn."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Tokens after which a continuation is cut off.")


class SampleRollout:
    """Samples with a KV cache until a token that ends texts, or until it is cut off.

    Prompts of one length are continued together, so that nothing is padded and no row sees another. Every token is
    drawn by one number of the given generator, each prompt having its own numbers: the same model, prompts and
    generator give the same tokens on the same machine.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, options: SampleOptions, resources: Resources) -> None:
        self._options = options

    def generate(self, model: Any, prompts: Sequence[Tensor], *, rng: torch.Generator) -> Rollout:
        """Return one continuation for each prompt (int64 ``[tokens]``), the token that ends it with it."""
        count = self._options.max_new_tokens
        numbers = torch.rand(len(prompts), count, generator=rng, dtype=torch.float64)
        lengths = [len(p) for p in prompts]
        found: list[Tensor] = [prompts[0]] * len(prompts)
        clipped = torch.zeros(len(prompts), dtype=torch.bool)
        with torch.no_grad(), _writing(model):
            for length in sorted(set(lengths)):
                rows = [i for i, n in enumerate(lengths) if n == length]
                start = torch.stack([prompts[i] for i in rows])
                new, ended = self._continue(model, start, numbers[rows].to(start.device))
                for row, written, end in zip(rows, new, ended, strict=True):
                    stop = int(end) + 1 if end >= 0 else len(written)
                    found[row] = torch.cat([prompts[row], written[:stop]])
                    clipped[row] = bool(end < 0)
        ids = pad_sequence(found, batch_first=True, padding_value=0)
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        begin = torch.tensor(lengths, device=ids.device)[:, None]
        after = torch.tensor([len(f) for f in found], device=ids.device)[:, None]
        labels = torch.where((places >= begin) & (places < after), ids, IGNORED)
        return Rollout(ids, labels, clipped.to(ids.device))

    def _continue(self, model: Any, prompts: Tensor, numbers: Tensor) -> tuple[Tensor, list[int]]:
        """Continue prompts ``[rows, length]``: the new tokens ``[rows, new]`` and where each ended, -1 for nowhere."""
        ends = torch.tensor(sorted(end_ids(model)), device=prompts.device)
        room = getattr(model.config, "max_position_embeddings", None) or prompts.shape[1] + numbers.shape[1]
        most = max(1, min(numbers.shape[1], room - prompts.shape[1]))
        ended = [-1] * len(prompts)
        written: list[Tensor] = []
        tokens, past = prompts, None
        while len(written) < most and -1 in ended:
            out = model(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            drawn = self._draw(out.logits[:, -1], numbers[:, len(written)])
            written.append(drawn)
            for row in torch.isin(drawn, ends).nonzero()[:, 0].tolist():
                if ended[row] < 0:
                    ended[row] = len(written) - 1
            tokens = drawn[:, None]
        return torch.stack(written, 1), ended

    def _draw(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Draw one token a row: the first at which the summed probabilities exceed its number.

        :param logits: ``[rows, vocabulary]``.
        :param numbers: float64 ``[rows]``, evenly distributed between 0 and 1.
        """
        chances = torch.softmax(logits.double() / self._options.temperature, -1)
        order = None
        if self._options.top_p < 1.0:
            chances, order = chances.sort(dim=-1, descending=True, stable=True)
            before = chances.cumsum(-1) - chances
            chances = chances.masked_fill(before >= self._options.top_p, 0.0)
        summed = chances.cumsum(-1)
        place = torch.searchsorted(summed, (numbers * summed[:, -1])[:, None], right=True)
        # Rounding may leave a number at the very end: the last token that can be drawn is meant.
        last = chances.shape[1] - 1 - (chances > 0).flip(-1).int().argmax(-1, keepdim=True)
        place = torch.minimum(place, last)
        return (place if order is None else order.gather(1, place))[:, 0]


def end_ids(model: Any) -> frozenset[int]:
    """Return the ids that end a text, by the model's generation config."""
    generation = getattr(model, "generation_config", None)
    stated = getattr(generation, "eos_token_id", None)
    if stated is None:
        stated = getattr(model.config, "eos_token_id", None)
    if stated is None:
        return frozenset()
    return frozenset([stated] if isinstance(stated, int) else stated)


@contextmanager
def _writing(model: Any) -> Iterator[None]:
    """Evaluation mode, and an attention that knows caches; both as before afterwards."""
    # The attention that is lent for whole windows suits no cache.
    own: str = model.config._attn_implementation
    with evaluating(model), attention_of(model, "sdpa" if own == NAME else own):
        yield
