"""Learning from rewards: RLOO (Ahmadian et al., arXiv 2402.14740)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from apt.console.errors import UsageError
from apt.training.components import build
from apt.training.contract import IGNORED, Batch, LossOut, Metric, Resources, Reward, Rollout, RolloutBackend, weight_of
from apt.training.forward import evaluating, last_hidden, targets_of
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss, token_nll
from apt.training.losses.on_policy import CLIPPED, WRITTEN, prompts_of, rollout_metrics
from apt.training.losses.terms import Terms
from apt.training.rollouts.sample import SampleOptions
from apt.training.sections import RewardSection, RolloutSection, Section

#: Beside a batch's tensors: the advantage of each row, and each reward's figures (NaN where there is none).
_ADVANTAGES: Final = "advantages"
_REWARDS: Final = "rewards"
_TOTAL: Final = "mean"


class RewardTerm(BaseModel):
    """One reward and its weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: RewardSection = Field(description="A component of kind reward.")
    weight: float = Field(default=1.0, description="Of its figures in the sum that is learned from.")


class PolicyOptions(Section):
    """Options of ``policy``."""

    name: Literal["policy"] = Field(default="policy", description="The component.")
    rewards: dict[str, RewardTerm] = Field(
        min_length=1, description="What the continuations are judged by, each under the name of its metrics."
    )
    rollout: RolloutSection = Field(default=SampleOptions(), description="A component of kind rollout.")
    samples: int = Field(default=4, ge=2, description="Continuations of each prompt, which are measured by each other.")
    prompt_tokens: int = Field(
        default=32, ge=1, description="First tokens of a row that are continued, where the row brings no prompt."
    )
    kl: float = Field(
        default=0.0,
        ge=0.0,
        description="What a nat of divergence from the teacher costs a continuation; above 0 a teacher is needed.",
    )

    def further_needs(self) -> frozenset[str]:
        """Return the teacher, where a continuation is held to it."""
        return frozenset({"teacher"}) if self.kl else frozenset()


class Policy:
    """REINFORCE with a leave-one-out baseline.

    Each row's prompt is continued ``samples`` times. A continuation's advantage is its reward less the mean reward of
    the prompt's other continuations, and the loss is ``-advantage * log-probability``, summed over its tokens. With
    ``kl`` the reward is less ``kl * (log p_model - log p_teacher)`` of the whole continuation (section 2 there). What
    no reward can judge is not trained on, nor is a continuation without another one beside it.
    """

    needs: frozenset[str] = frozenset({"tokenizer"})

    def __init__(self, options: PolicyOptions, resources: Resources) -> None:
        if options.kl and resources.teacher is None:
            raise UsageError("the loss 'policy' needs a teacher where kl is above 0")
        self._options = options
        self._tokenizer: Any = resources.tokenizer
        self._reference: Any = resources.teacher
        self._rollout: RolloutBackend = build("rollout", options.rollout, resources)
        self._rewards: dict[str, Reward] = {
            name: build("reward", term.reward, resources) for name, term in options.rewards.items()
        }

    def prepare(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> Batch:
        """Return a batch of the model's continuations, each with its advantage; rows that count nothing have none."""
        samples = self._options.samples
        prompts = prompts_of(batch, self._options.prompt_tokens)
        asked = [(row, prompt) for row, prompt in enumerate(prompts) if prompt is not None]
        if not asked:
            none = batch["labels"].new_zeros(len(batch["labels"]))
            figures = {name: torch.zeros(0, dtype=torch.float64) for name in (*self._rewards, _TOTAL)}
            return {**batch, WRITTEN: none, CLIPPED: none.bool(), _ADVANTAGES: none.double(), _REWARDS: figures}
        written = self._rollout.generate(model, [p for _, p in asked for _ in range(samples)], rng=rng)
        meta = [self._meta(batch, row) for row, _ in asked for _ in range(samples)]
        figures = self._judge(written, meta)
        total = figures[_TOTAL]
        if self._options.kl:
            total = total - self._options.kl * self._divergence(model, written)
        advantages = leave_one_out(total.view(-1, samples)).flatten().to(written.ids.device)
        labels = written.labels.masked_fill(advantages.isnan()[:, None], IGNORED)
        counts = (written.labels != IGNORED).sum(-1)
        return {
            "input_ids": written.ids,
            "labels": labels,
            "row": batch["row"].repeat_interleave(samples) if "row" in batch else torch.arange(len(labels)),
            "meta": meta,
            WRITTEN: counts,
            CLIPPED: written.clipped,
            _ADVANTAGES: advantages.nan_to_num(),
            _REWARDS: figures,
        }

    def __call__(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        """Return the summed loss.

        Metrics: ``reward/mean`` (of the weighted sum of the rewards), ``reward/<name>/mean``,
        ``reward/<name>/unscored`` (share of the continuations), ``rollout/len_mean`` and ``rollout/clip_frac``.
        """
        hidden, targets = last_hidden(model, batch), targets_of(batch)
        rows = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
        advantages = batch[_ADVANTAGES][rows].to(torch.promote_types(hidden.dtype, torch.float32))
        loss, _ = linear_loss(hidden, Head.of(model), targets, Terms(), weights=advantages)
        return LossOut(loss, weight_of(batch), _reward_metrics(batch[_REWARDS]) | rollout_metrics(batch))

    def _meta(self, batch: Batch, row: int) -> Mapping[str, Any]:
        return batch["meta"][row] if "meta" in batch else {}

    def _judge(self, written: Rollout, meta: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Each reward's figures and their weighted sum, float64 ``[continuations]``, NaN where there is none."""
        texts = [
            self._tokenizer.decode(ids[labels != IGNORED].tolist(), skip_special_tokens=True)
            for ids, labels in zip(written.ids, written.labels, strict=True)
        ]
        figures = {}
        for name, reward in self._rewards.items():
            given = reward(texts, meta)
            figures[name] = torch.tensor([float("nan") if g is None else float(g) for g in given], dtype=torch.float64)
        weighted = [self._options.rewards[name].weight * values for name, values in figures.items()]
        return {**figures, _TOTAL: torch.stack(weighted).sum(0)}

    def _divergence(self, model: Any, written: Rollout) -> Tensor:
        """How much likelier each continuation is to the model than to the reference, nats, float64."""
        batch = {"input_ids": written.ids, "labels": written.labels}
        rows = (written.labels[:, 1:] != IGNORED).nonzero()[:, 0]
        sums = []
        with evaluating(model):
            for one in (self._reference, model):
                nll = token_nll(last_hidden(one, batch), Head.of(one), targets_of(batch)).double()
                sums.append(nll.new_zeros(len(written.ids)).index_add(0, rows, nll))
        return (sums[0] - sums[1]).cpu()


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return each reward less the mean of its row's others, NaN where it or they are NaN.

    :param rewards: ``[prompts, samples]``.
    """
    known = ~rewards.isnan()
    values = rewards.nan_to_num()
    others = known.sum(-1, keepdim=True) - 1
    baseline = (values.sum(-1, keepdim=True) - values) / others.clamp_min(1)
    return torch.where(known & (others > 0), values - baseline, torch.nan)


def _reward_metrics(figures: Mapping[str, Tensor]) -> dict[str, Metric]:
    metrics = {}
    for name, values in figures.items():
        known = ~values.isnan()
        mean = Metric(values.nan_to_num().sum(), known.sum())
        if name == _TOTAL:
            metrics["reward/mean"] = mean
            continue
        metrics[f"reward/{name}/mean"] = mean
        metrics[f"reward/{name}/unscored"] = Metric((~known).sum().double(), torch.tensor(len(values)))
    return metrics
