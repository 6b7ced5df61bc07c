"""Distillation: a student drawn to its teacher's next-token distributions, inner states and relations."""

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from apt.console.errors import UsageError
from apt.training.components import build
from apt.training.contract import Batch, LossOut, Metric, Resources, RolloutBackend, token_weights, weight_of
from apt.training.forward import Body, run_body, targets_of
from apt.training.losses.divergences import DivergenceName
from apt.training.losses.feature import FeatureSettings, FeatureTerm
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.on_policy import WRITTEN, OnPolicySettings, rollout_metrics, write_rows
from apt.training.losses.relation import FEWEST_ROWS, RelationSettings, relation_loss
from apt.training.losses.terms import Sums, Terms
from apt.training.losses.weighting import SequenceWeight, TokenWeight, weigh
from apt.training.sections import Section, TeacherSection
from apt.training.teachers.contract import SparseTargets, Targets, Teacher
from apt.training.teachers.memory import MemoryTeacherOptions
from apt.training.teachers.sparse import sample_of, top_k_of

Strategy = Literal["response", "feature", "relation", "mixed"]

#: Where :meth:`Distill.prepare` leaves a teacher's targets that it had to ask for.
_TARGETS = "targets"

#: The teacher that is no model: it has no inner states, and can judge no other text than its own.
_ON_DISK = "cache"


class DistillLossOptions(Section):
    """Options of ``distill``."""

    name: Literal["distill"] = Field(default="distill", description="The component.")
    teacher: TeacherSection = Field(default=MemoryTeacherOptions(), description="A component of kind teacher.")
    strategy: Strategy = Field(
        default="response",
        description="What is compared: response the next-token distributions, feature the inner states, relation the "
        "rows with one another; mixed adds feature, relation or both to response.",
    )
    divergence: DivergenceName = Field(default="forward_kl", description="Divergence of the student from the teacher.")
    alpha: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Weight of the distillation term; the labels' cross-entropy has 1 - alpha.",
    )
    temperature: float = Field(
        default=1.0, gt=0.0, le=100.0, description="Divides both sides' logits; the term is multiplied by its square."
    )
    targets: Literal["full", "top_k", "sampled"] = Field(
        default="full",
        description="Of a teacher in memory: its whole distributions, their k likeliest ids, or an unbiased sample of "
        "k draws.",
    )
    k: int | None = Field(default=None, ge=1, description="Ids or draws a token; for top_k and sampled.")
    feature: FeatureSettings | None = Field(default=None, description="For the strategies feature and mixed.")
    relation: RelationSettings | None = Field(default=None, description="For the strategies relation and mixed.")
    token_weight: TokenWeight = Field(
        default="uniform",
        description="What a token counts: one each, the entropy of the teacher's distribution in nats, or one over its "
        "perplexity.",
    )
    sequence_weight: SequenceWeight = Field(
        default="tokens", description="Whether each token counts the same, or each sequence whatever its length."
    )
    on_policy: OnPolicySettings | None = Field(
        default=None, description="Let the student write a share of the rows itself; none when absent."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        strategy = self.strategy
        for name, value in (("feature", self.feature), ("relation", self.relation)):
            if value is not None and strategy not in (name, "mixed"):
                raise ValueError(f"{name} is given, but the strategy {strategy!r} does not use it")
        if strategy == "mixed" and self.feature is None and self.relation is None:
            raise ValueError("the strategy 'mixed' needs the settings of feature, of relation, or of both")
        if strategy in ("feature", "relation"):
            self._refuse_unused(("divergence", "temperature", "targets", "k"))
        if (self.targets == "full") != (self.k is None):
            raise ValueError("k belongs to targets top_k and sampled, which need it")
        if self.teacher.name == _ON_DISK:
            self._refuse_on_disk()
        if self.temperature != 1.0 and (self.targets != "full" or self.teacher.name == _ON_DISK):
            raise ValueError("a distribution that is known at some ids only is compared at temperature 1")
        if self.targets == "sampled" and self.divergence != "forward_kl":
            raise ValueError("an unbiased sample estimates forward_kl and no other divergence")
        return self

    def contradictions(self, config: Any) -> Iterable[tuple[str, str]]:
        """Yield that a micro-batch has too few rows to be related: the term would be 0 throughout."""
        relation = _relation_settings(self)
        if relation is not None and config.train.batch_rows < FEWEST_ROWS[relation.kind]:
            fewest = FEWEST_ROWS[relation.kind]
            yield "", f"the relation {relation.kind!r} says nothing of fewer than {fewest} rows; raise train.batch_rows"

    def _refuse_unused(self, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is given, but the strategy {self.strategy!r} compares no distributions")

    def _refuse_on_disk(self) -> None:
        if self.strategy != "response":
            raise ValueError(f"a teacher on disk has no inner states for the strategy {self.strategy!r}")
        if self.on_policy is not None:
            raise ValueError("a teacher on disk knows its own text only, not what the student writes; drop on_policy")
        if self.targets != "full":
            raise ValueError("what a teacher on disk holds was chosen when it was captured; drop targets and k")


class Distill(nn.Module):
    """``alpha * distillation + (1 - alpha) * cross-entropy`` per counted token.

    The distillation term is the sum of what the strategy names: ``T² * divergence(teacher, student)``; the weighted
    distance of inner states; the weighted loss of relations, which counts as one figure of each of the micro-batch's
    tokens. Its only parameters are the projections of inner states.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, options: DistillLossOptions, resources: Resources) -> None:
        super().__init__()
        self._options = options
        self._teacher: Teacher = build("teacher", options.teacher, resources)
        self._responds = options.strategy in ("response", "mixed")
        self._own = 1.0 - options.alpha
        self._terms = Terms(
            alpha=options.alpha if self._responds else 0.0,
            temperature=options.temperature,
            divergence=options.divergence,
            shared_vocab=resources.shared_vocab,
        )
        self._feature = _feature_term(options, resources)
        self._relation = _relation_settings(options)
        self._wanted = self._feature.wanted if self._feature is not None else frozenset()
        if not self._wanted <= self._teacher.offers:
            raise UsageError(f"the teacher {options.teacher.name!r} has no {', '.join(sorted(self._wanted))} to give")
        self._rollout: RolloutBackend | None = None
        if options.on_policy is not None:
            self._rollout = build("rollout", options.on_policy.rollout, resources)

    def prepare(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> Batch:
        """Let the student write its share of the rows, and weigh the tokens."""
        options = self._options
        if self._rollout is not None and options.on_policy is not None:
            batch = write_rows(model, batch, self._rollout, options.on_policy, rng)
        if options.token_weight == "uniform" and options.sequence_weight == "tokens":
            return batch
        theirs = self._targets(batch, rng) if options.token_weight != "uniform" else None
        batch = weigh(batch, theirs, options.token_weight, options.sequence_weight, self._terms.shared_vocab)
        keep = theirs is not None and options.strategy == "response"
        return {**batch, _TARGETS: theirs} if keep else batch

    def forward(self, model: Any, batch: Batch, *, rng: torch.Generator, step: int) -> LossOut:
        """Return the summed loss.

        Metrics: ``loss/ce``; by strategy ``loss/distill``, ``kd/kl_token`` (KL(teacher ‖ student) at temperature 1 in
        nats per token, whatever is trained on), ``kd/top1_agree`` and, where the teacher is known at some ids only,
        ``kd/teacher_mass``; ``loss/feature``, ``loss/attention``, ``loss/relation`` before their weights; with rows of
        its own ``rollout/len_mean`` and ``rollout/clip_frac``.
        """
        weight, weights = weight_of(batch), token_weights(batch)
        theirs = self._teacher.body(batch, self._wanted) if self._feature or self._relation else None
        targets = self._targets(batch, rng, theirs) if self._responds else None
        ours = run_body(model, batch, self._wanted)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (targets is not None or self._own > 0.0)):
            loss, sums = linear_loss(
                ours.last, Head.of(model), targets_of(batch), self._terms, targets, weights=weights
            )
        metrics = {"loss/ce": Metric(sums.cross_entropy, weight)}
        if targets is None:
            loss = self._own * loss
        else:
            metrics |= _response_metrics(sums, targets, weight)
        if theirs is not None:
            inner, found = self._inner(ours, theirs, batch, weight, weights)
            loss = loss + self._options.alpha * inner.to(loss.dtype)
            metrics |= found
        if WRITTEN in batch:
            metrics |= rollout_metrics(batch)
        return LossOut(loss, weight, metrics)

    def _targets(self, batch: Batch, rng: torch.Generator, body: Body | None = None) -> Targets:
        if _TARGETS in batch:
            held: Targets = batch[_TARGETS]
            return held
        if body is None:
            targets = self._teacher.targets(batch, rng=rng)
        else:
            targets = self._teacher.targets(batch, rng=rng, body=body)
        return _thinned(targets, self._options, self._terms.shared_vocab, rng)

    def _inner(
        self, ours: Body, theirs: Body, batch: Batch, weight: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, dict[str, Metric]]:
        """The weighted sum of what is compared beside distributions, and the metrics of it."""
        total = ours.last.new_zeros((), dtype=torch.promote_types(ours.last.dtype, torch.float32))
        metrics: dict[str, Metric] = {}
        if self._feature is not None:
            for name, share, tokens in self._feature(ours, theirs, batch):
                summed = (tokens if weights is None else tokens * weights.to(tokens.dtype)).sum()
                metrics[name] = Metric(summed.detach(), weight)
                total = total + share * summed
        if self._relation is not None:
            summed = relation_loss(self._relation.kind, ours, theirs, batch) * weight
            metrics["loss/relation"] = Metric(summed.detach(), weight)
            total = total + self._relation.weight * summed
        return total, metrics


def _feature_term(options: DistillLossOptions, resources: Resources) -> FeatureTerm | None:
    if options.feature is None and options.strategy != "feature":
        return None
    if resources.model is None or resources.teacher is None:
        raise UsageError("inner states are compared between two models, and one of them is not given")
    return FeatureTerm(options.feature or FeatureSettings(), resources.model, resources.teacher)


def _relation_settings(options: DistillLossOptions) -> RelationSettings | None:
    return RelationSettings() if options.relation is None and options.strategy == "relation" else options.relation


def _thinned(targets: Targets, options: DistillLossOptions, vocab: int | None, rng: torch.Generator) -> Targets:
    """The teacher's distributions as far as the options want to know them."""
    if options.k is None or isinstance(targets, SparseTargets):
        return targets
    if options.targets == "top_k":
        return top_k_of(targets, options.k, shared_vocab=vocab)
    return sample_of(targets, options.k, rng=rng, shared_vocab=vocab)


def _response_metrics(sums: Sums, targets: Targets, weight: Tensor) -> dict[str, Metric]:
    metrics = {
        "loss/distill": Metric(sums.divergence, weight),
        "kd/kl_token": Metric(sums.forward_kl, weight),
        "kd/top1_agree": Metric(sums.agreeing, weight),
    }
    if isinstance(targets, SparseTargets):
        metrics["kd/teacher_mass"] = Metric(sums.teacher_mass, weight)
    return metrics
