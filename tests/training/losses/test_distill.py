"""The strategies of distillation: their options, their runs, rows of the student's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training_helpers import VOCAB, small_config, small_model, small_rows
from transformers import TrainerCallback

from apt.document import DocumentError
from apt.training.components import build_loss
from apt.training.config import parse_config
from apt.training.contract import IGNORED, Resources, weight_of
from apt.training.losses.distill import DistillLossOptions
from apt.training.losses.on_policy import prompts_of
from apt.training.runner import run
from apt.training.sections import Section

STRATEGIES: dict[str, dict[str, Any]] = {
    "response": {"strategy": "response", "alpha": 0.8},
    "feature": {"strategy": "feature", "alpha": 0.5, "feature": {"attention_weight": 0.5}},
    "relation": {"strategy": "relation", "alpha": 0.5, "relation": {"kind": "angle"}},
    "mixed": {"strategy": "mixed", "alpha": 0.9, "feature": {}, "relation": {}, "temperature": 2.0},
    "top_k": {"targets": "top_k", "k": 8, "alpha": 0.8},
    "sampled": {"targets": "sampled", "k": 8, "alpha": 0.8, "token_weight": "teacher_confidence"},
    "on_policy": {
        "on_policy": {"share": 0.5, "prompt_tokens": 4, "rollout": {"name": "sample", "max_new_tokens": 8}},
    },
}  # fmt: skip
METRICS = {
    "response": {"loss/ce", "loss/distill", "kd/kl_token", "kd/top1_agree"},
    "feature": {"loss/ce", "loss/feature", "loss/attention"},
    "relation": {"loss/ce", "loss/relation"},
    "mixed": {"loss/ce", "loss/distill", "kd/kl_token", "kd/top1_agree", "loss/feature", "loss/relation"},
    "top_k": {"loss/ce", "loss/distill", "kd/kl_token", "kd/top1_agree", "kd/teacher_mass"},
    "sampled": {"loss/ce", "loss/distill", "kd/kl_token", "kd/top1_agree", "kd/teacher_mass"},
    "on_policy": {
        "loss/ce", "loss/distill", "kd/kl_token", "kd/top1_agree", "rollout/len_mean", "rollout/clip_frac",
    },
}  # fmt: skip


def teacher_of(**changes: Any) -> Any:
    return small_model(1, hidden_size=48, num_attention_heads=6, num_hidden_layers=3, **changes).eval()


def train(tmp_path: Path, student: Any, loss: dict[str, Any], **changes: Any) -> Any:
    config = small_config(loss={"name": "distill", **loss}, **changes)
    resources = Resources(teacher=teacher_of().requires_grad_(False))
    return run(config, student, small_rows(), run_dir=tmp_path, resources=resources)


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_trains_and_tells_its_own_figures(tmp_path: Path, name: str) -> None:
    student = small_model()
    before = [p.detach().clone() for p in student.parameters()]
    result = train(tmp_path, student, STRATEGIES[name], steps=8, eval_every=4)
    own = {m for m in result.metrics if m.split("/")[0] not in ("perf", "train")}
    assert own == METRICS[name]
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert not any("projection" in n for n, _ in student.named_parameters())
    if name == "on_policy":
        assert 1 <= result.metrics["rollout/len_mean"] <= 8 and 0 <= result.metrics["rollout/clip_frac"] <= 1


def test_all_ids_as_the_likeliest_ones_are_the_whole_distribution() -> None:
    student, teacher, rows = small_model(), teacher_of(), small_rows(4)
    batch = {"input_ids": rows.ids, "labels": rows.labels}
    sums = []
    for options in (DistillLossOptions(), DistillLossOptions(targets="top_k", k=VOCAB)):
        loss: Any = build_loss(options, resources=Resources(teacher=teacher, model=student))
        out = loss(student, batch, rng=torch.Generator(), step=0)
        sums.append(out.loss_sum)
    gradients = [torch.autograd.grad(s, list(student.parameters())) for s in sums]
    assert float(sums[1].detach()) == pytest.approx(float(sums[0].detach()), rel=1e-3)
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_projections_learn_in_full_precision(precision: str) -> None:
    student, teacher = small_model(), teacher_of()
    options = DistillLossOptions(strategy="feature")
    loss: Any = build_loss(options, resources=Resources(teacher=teacher, model=student))
    rows = small_rows(4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        out = loss(student, {"input_ids": rows.ids, "labels": rows.labels}, rng=torch.Generator(), step=0)
    out.loss_sum.backward()
    assert out.loss_sum.dtype == torch.float32
    for projection in loss.parameters():
        assert projection.dtype == torch.float32 and float(projection.grad.abs().sum()) > 0


class Halt(RuntimeError):
    """Ends a run between two saved states."""


class Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 5:
            raise Halt


@pytest.mark.parametrize("name", ["feature", "on_policy"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, name: str, optimizer: str) -> None:
    """With projections, which are part of the run's state, and with rows of the student's own."""
    settings: dict[str, Any] = {"eval_every": 2, "grad_accum": 2, "optimizer": {"name": optimizer}}
    finished, halted = small_model(attention_dropout=0.0), small_model()
    whole = train(tmp_path / "whole", finished, STRATEGIES[name], steps=6, **settings)

    config = small_config(loss={"name": "distill", **STRATEGIES[name]}, steps=6, **settings)
    resources = Resources(teacher=teacher_of().requires_grad_(False))
    with pytest.raises(Halt):
        run(config, halted, small_rows(), run_dir=tmp_path / "cut", resources=resources, callbacks=(Stop(),))
    resumed = small_model()
    torch.manual_seed(77)
    result = run(config, resumed, small_rows(), run_dir=tmp_path / "cut", resources=resources)
    for a, b in zip(finished.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.train_loss for p in result.curve] == [p.train_loss for p in whole.curve]


def test_rows_of_the_students_own_are_continuations_of_its_prompts() -> None:
    student, rows = small_model(), small_rows(6)
    rollout = {"name": "sample", "max_new_tokens": 5}
    on_policy = {"share": 0.5, "prompt_tokens": 4, "rollout": rollout}
    section = small_config(loss={"name": "distill", "on_policy": on_policy}).train.loss
    loss: Any = build_loss(section, resources=Resources(teacher=teacher_of(), model=student))
    batch = {"input_ids": rows.ids, "labels": rows.labels, "row": torch.arange(6), "meta": [{}] * 6}
    batch["labels"][0, :7] = IGNORED  # brings a prompt of its own
    made = loss.prepare(student, batch, rng=torch.Generator().manual_seed(1), step=0)
    again = loss.prepare(student, batch, rng=torch.Generator().manual_seed(1), step=0)
    assert torch.equal(made["input_ids"], again["input_ids"])
    written = made["written_tokens"] > 0
    assert 0 < int(written.sum()) < 6
    for row in range(6):
        prompt = 7 if row == 0 else 4
        if written[row]:
            assert torch.equal(made["input_ids"][row, :prompt], rows.ids[row, :prompt])
            assert (made["labels"][row] != IGNORED).nonzero()[:, 0].tolist() == list(
                range(prompt, prompt + int(made["written_tokens"][row]))
            )
        else:
            assert torch.equal(made["labels"][row], batch["labels"][row])
    out = loss(student, made, rng=torch.Generator(), step=0)
    assert float(out.weight) == float((made["labels"][:, 1:] != IGNORED).sum())


def test_prompts() -> None:
    labels = torch.tensor([[-100, 2, 3, 4, 5], [-100, -100, 3, 4, -100], [-100] * 5, [1, 2, 3, 4, 5]])
    ids = torch.arange(20).view(4, 5)
    found = prompts_of({"input_ids": ids, "labels": labels}, 3)
    assert [p if p is None else p.tolist() for p in found] == [[0, 1, 2], [5, 6], None, [15, 16, 17]]
    packed = {"input_ids": ids[:1], "labels": torch.tensor([[-100, -100, 2, -100, 4]]),
              "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}  # fmt: skip
    assert [p.tolist() for p in prompts_of(packed, 3) if p is not None] == [[0, 1]]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strategy": "response", "feature": {}}, "feature is given, but the strategy 'response'"),
        ({"strategy": "feature", "relation": {}}, "relation is given, but the strategy 'feature'"),
        ({"strategy": "mixed"}, "needs the settings of feature, of relation, or of both"),
        ({"strategy": "feature", "temperature": 2.0}, "temperature is given"),
        ({"strategy": "relation", "divergence": "jsd"}, "divergence is given"),
        ({"strategy": "feature", "targets": "top_k", "k": 4}, "targets is given"),
        ({"targets": "top_k"}, "k belongs to"),
        ({"k": 4}, "k belongs to"),
        ({"targets": "top_k", "k": 4, "temperature": 2.0}, "compared at temperature 1"),
        ({"targets": "sampled", "k": 4, "divergence": "jsd"}, "forward_kl and no other"),
        ({"strategy": "feature", "feature": {"weight": 0.0}}, "nothing is compared"),
        ({"strategy": "feature", "feature": {"layers": []}}, "layers is empty"),
        ({"strategy": "feature", "feature": {"layers": [[1, 2], [1, 2]]}}, "a pair twice"),
        ({"strategy": "feature", "feature": {"layers": [[0, 0]], "attention_weight": 1.0}}, "the embeddings"),
        ({"strategy": "feature", "feature": {"layers": [[1]]}}, "layers"),
        ({"strategy": "relation", "relation": {"kind": "distanse"}}, "relation.kind"),
        ({"strategy": "relation", "relation": {"weight": 0.0}}, "relation.weight"),
        ({"on_policy": {"share": 1.5}}, "on_policy.share"),
        ({"on_policy": {"rollout": {"name": "sampel"}}}, "did you mean 'sample'"),
        ({"on_policy": {"rollout": {"name": "sample", "top_p": 0.0}}}, "on_policy.rollout.top_p"),
        ({"token_weight": "entropy"}, "token_weight"),
    ],
)
def test_contradictions_and_typos_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        small_config(loss={"name": "distill", **options})
    assert reason in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strategy": "feature"}, "no inner states"),
        ({"strategy": "relation"}, "no inner states"),
        ({"on_policy": {}}, "knows its own text only"),
        ({"targets": "top_k", "k": 8}, "was chosen when it was captured"),
        ({"temperature": 2.0}, "compared at temperature 1"),
    ],
)
def test_a_teacher_on_disk_is_not_asked_for_what_it_has_not(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DistillLossOptions.model_validate({"teacher": Section(name="cache"), **options})


def test_what_a_resolved_config_says_is_read_again() -> None:
    for loss in STRATEGIES.values():
        config = small_config(loss={"name": "distill", **loss})
        assert parse_config(config.resolved()).digest() == config.digest()


@pytest.mark.parametrize("weights", [{"sequence_weight": "sequences"}, {"token_weight": "teacher_entropy"}])
def test_weights_are_part_of_the_batch(weights: dict[str, Any]) -> None:
    student, teacher = small_model(), teacher_of()
    loss: Any = build_loss(
        DistillLossOptions(alpha=0.6, **weights), resources=Resources(teacher=teacher, model=student)
    )
    rows = small_rows(4)
    labels = rows.labels.clone()
    labels[1, 4:] = IGNORED
    batch = loss.prepare(student, {"input_ids": rows.ids, "labels": labels}, rng=torch.Generator(), step=0)
    out = loss(student, batch, rng=torch.Generator(), step=0)
    assert float(out.weight) == pytest.approx(float(weight_of(batch)))
    # By hand: each token's loss times its weight.
    mine, wanted = student(input_ids=rows.ids).logits[:, :-1], teacher(input_ids=rows.ids).logits[:, :-1]
    log_q, log_p = mine.double().log_softmax(-1), wanted.double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    mask = labels[:, 1:] != IGNORED
    nll = -log_q.gather(-1, labels[:, 1:].clamp_min(0)[..., None])[..., 0]
    if "sequence_weight" in weights:
        share = mask / mask.sum(-1, keepdim=True)
        assert float(out.weight) == pytest.approx(4.0)
    else:
        share = mask * -(log_p.exp() * log_p).sum(-1)
    total = float((share * (0.6 * kl + 0.4 * nll)).sum().detach())
    assert float(out.loss_sum.detach()) == pytest.approx(total, rel=1e-5)
