"""Rows that the model writes itself, in place of those of the text (GKD, arXiv 2306.13649)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import pad

from apt.training.contract import IGNORED, Batch, Metric, Rollout, RolloutBackend
from apt.training.rollouts.sample import SampleOptions
from apt.training.sections import RolloutSection

#: Beside a batch's tensors: tokens that were written in each row (0 for a row of the text), and which were cut off.
WRITTEN: Final = "written_tokens"
CLIPPED: Final = "written_clipped"


class OnPolicySettings(BaseModel):
    """How much of a batch the student writes itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Chance of a row to be replaced by the student's own continuation."
    )
    rollout: RolloutSection = Field(default=SampleOptions(), description="A component of kind rollout.")
    prompt_tokens: int = Field(
        default=32, ge=1, description="First tokens of a row that are continued, where the row brings no prompt."
    )


def write_rows(
    model: Any, batch: Batch, backend: RolloutBackend, settings: OnPolicySettings, rng: torch.Generator
) -> Batch:
    """Return the batch with a share of its rows continued by the model from their prompts."""
    chosen = (torch.rand(len(batch["labels"]), generator=rng) < settings.share).tolist()
    prompts = prompts_of(batch, settings.prompt_tokens)
    rows = [i for i, prompt in enumerate(prompts) if chosen[i] and prompt is not None]
    if not rows:
        nothing = torch.zeros(len(prompts), dtype=torch.int64, device=batch["labels"].device)
        return {**batch, WRITTEN: nothing, CLIPPED: nothing.bool()}
    written = backend.generate(model, [p for i in rows if (p := prompts[i]) is not None], rng=rng)
    return replaced(batch, rows, written)


def prompts_of(batch: Batch, tokens: int) -> list[Tensor | None]:
    """Return the prompt of each row: what stands uncounted before its first counted token, else its first tokens.

    A single uncounted token is the beginning of a text, not a prompt. Of packed documents the first counted one is
    taken. A row that counts nothing has no prompt: it is ``None``.
    """
    return [_prompt(batch, row, tokens) for row in range(len(batch["labels"]))]


def _prompt(batch: Batch, row: int, tokens: int) -> Tensor | None:
    places = (batch["labels"][row] != IGNORED).nonzero()[:, 0]
    if not len(places):
        return None
    first, end, begin = int(places[0]), int(places[-1]), 0
    if "position_ids" in batch:
        starts = (batch["position_ids"][row] == 0).nonzero()[:, 0].tolist()
        begin = max((s for s in starts if s <= first), default=0)
        end = min((s - 1 for s in starts if s > first), default=end)
    ids: Tensor = batch["input_ids"][row]
    return ids[begin:first] if first - begin > 1 else ids[begin : min(begin + tokens, max(end, begin + 1))]


def replaced(batch: Batch, rows: Sequence[int], written: Rollout) -> Batch:
    """Return a batch in which what was written stands in place of some rows."""
    everything = len(rows) == len(batch["labels"])
    width = max(written.ids.shape[1], 0 if everything else batch["labels"].shape[1])
    place = torch.tensor(list(rows), device=batch["labels"].device)

    def put(name: str, value: Tensor, fill: float) -> Tensor:
        held: Tensor = batch[name]
        whole = held.new_full((len(held), width), fill)
        if not everything:
            whole[:, : held.shape[1]] = held
        whole[place] = pad(value, (0, width - value.shape[1]), value=fill).to(held.dtype)
        return whole

    changed: dict[str, Any] = dict(batch)
    changed["input_ids"] = put("input_ids", written.ids, 0)
    changed["labels"] = put("labels", written.labels, IGNORED)
    if "weights" in batch:
        changed["weights"] = put("weights", torch.ones_like(written.ids), 0)
    if "position_ids" in batch:
        changed["position_ids"] = put(
            "position_ids", torch.arange(width, device=place.device).expand(len(rows), width), 0
        )
    counts = (written.labels != IGNORED).sum(-1)
    changed[WRITTEN] = counts.new_zeros(len(batch["labels"])).index_copy(0, place, counts)
    changed[CLIPPED] = written.clipped.new_zeros(len(batch["labels"])).index_copy(0, place, written.clipped)
    return changed


def rollout_metrics(batch: Mapping[str, Any]) -> dict[str, Metric]:
    """Return ``rollout/len_mean`` (tokens) and ``rollout/clip_frac`` over the rows that were written."""
    rows = (batch[WRITTEN] > 0).sum()
    return {
        "rollout/len_mean": Metric(batch[WRITTEN].sum().double(), rows),
        "rollout/clip_frac": Metric(batch[CLIPPED].sum().double(), rows),
    }
