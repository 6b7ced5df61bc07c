"""Feature distillation: layer maps, projections, attention maps, against references written out in float64."""

from typing import Any

import pytest
import torch
from training_helpers import small_model, small_rows
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from apt.console.errors import UnsupportedError, UsageError
from apt.training.components import build_loss
from apt.training.contract import Resources
from apt.training.forward import ATTENTIONS, run_body
from apt.training.losses.distill import DistillLossOptions
from apt.training.losses.feature import FeatureSettings, FeatureTerm, layer_pairs, map_divergence


def batch_of(n: int = 4) -> dict[str, torch.Tensor]:
    rows = small_rows(n)
    labels = rows.labels.clone()
    labels[1, 5:9] = -100
    labels[2] = -100
    return {"input_ids": rows.ids, "labels": labels}


def models() -> tuple[Any, Any]:
    student = small_model(0, num_hidden_layers=2).double()
    teacher = small_model(1, num_hidden_layers=4, hidden_size=48, num_attention_heads=6).double().eval()
    return student, teacher.requires_grad_(False)


def call(loss: Any, model: Any, batch: Any) -> Any:
    return loss(model, batch, rng=torch.Generator(), step=0)


def make(student: Any, teacher: Any, **feature: Any) -> Any:
    options = DistillLossOptions(strategy="feature", feature=FeatureSettings(**feature))
    return build_loss(options, resources=Resources(teacher=teacher, model=student)).double()  # type: ignore[attr-defined]


def reference(student: Any, teacher: Any, loss: Any, batch: Any, distance: str, attention: float) -> torch.Tensor:
    """What the loss should be, token by token, from transformers' own outputs."""
    outs = []
    for model in (student, teacher):
        model.set_attn_implementation("eager")
        outs.append(model(input_ids=batch["input_ids"], output_hidden_states=True, output_attentions=True))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch["labels"])):
        for place in range(batch["labels"].shape[1] - 1):
            if batch["labels"][row, place + 1] == -100:
                continue
            for s, t in ((1, 2), (2, 4)):
                mine = outs[0].hidden_states[s][row, place] @ loss._feature.projections[f"from_{s}_to_{t}"].weight.T
                wanted = outs[1].hidden_states[t][row, place]
                if distance == "mse":
                    total = total + ((mine - wanted) ** 2).mean() / 2
                else:
                    total = total + (1 - mine @ wanted / mine.norm() / wanted.norm()) / 2
                q = outs[0].attentions[s - 1][row, :, place, : place + 1].mean(0)
                p = outs[1].attentions[t - 1][row, :, place, : place + 1].mean(0)
                total = total + attention * (p * (p / q).log()).sum() / 2
    return total


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("attention", [0.0, 0.7])
def test_values_and_gradients_are_those_written_out(distance: str, attention: float) -> None:
    student, teacher = models()
    loss, batch = make(student, teacher, distance=distance, attention_weight=attention), batch_of()
    parameters = [*student.parameters(), *loss.parameters()]
    out = call(loss, student, batch)
    found = torch.autograd.grad(out.loss_sum, parameters, allow_unused=True)
    wanted_sum = reference(student, teacher, loss, batch, distance, attention)
    wanted = torch.autograd.grad(wanted_sum, parameters, allow_unused=True)
    assert float(out.loss_sum.detach()) == pytest.approx(float(wanted_sum.detach()), rel=1e-6)
    assert len(list(loss.parameters())) == 2
    for a, b in zip(found, wanted, strict=True):
        assert b is None or torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    names = {"loss/ce", "loss/feature"} | ({"loss/attention"} if attention else set())
    assert set(out.metrics) == names


def test_micro_batches_add_up() -> None:
    student, teacher = models()
    loss, batch = make(student, teacher, attention_weight=1.0), batch_of()
    whole = call(loss, student, batch).loss_sum
    halves = [call(loss, student, {k: v[part] for k, v in batch.items()}).loss_sum for part in (slice(2), slice(2, 4))]
    assert float(sum(halves).detach()) == pytest.approx(float(whole.detach()), rel=1e-12)


def test_a_student_that_is_its_teacher_has_no_loss_through_the_identity() -> None:
    model = small_model()
    for projection in ("learned", "none"):
        loss = make(model.double(), model, projection=projection, attention_weight=1.0)
        assert len(list(loss.parameters())) == (2 if projection == "learned" else 0)
        assert abs(float(call(loss, model, batch_of()).loss_sum.detach())) < 1e-12


def test_eager_attention_is_lent_for_the_pass_only() -> None:
    model, batch = small_model(), batch_of()
    own = model.config._attn_implementation
    body = run_body(model, batch, {ATTENTIONS})
    assert model.config._attn_implementation == own != "eager"
    assert [a.shape for a in body.attentions] == [(4, 4, 16, 16)] * 2
    assert torch.allclose(body.attentions[0].sum(-1), torch.ones(4, 4, 16))


def test_layers_are_mapped_by_depth() -> None:
    def pairs(mine: int, wanted: int) -> list[tuple[int, int]]:
        configs = [small_model(num_hidden_layers=n).config for n in (mine, wanted)]
        return layer_pairs(FeatureSettings(), *configs)

    assert pairs(2, 4) == [(1, 2), (2, 4)]
    assert pairs(3, 5) == [(1, 2), (2, 3), (3, 5)]
    assert pairs(4, 2) == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert pairs(3, 3) == [(1, 1), (2, 2), (3, 3)]


def test_what_cannot_be_compared_is_refused() -> None:
    student, teacher = models()
    with pytest.raises(UsageError, match="layer 5 of the teacher, which has 4"):
        FeatureTerm(FeatureSettings(layers=[(1, 5)]), student, teacher)
    with pytest.raises(UsageError, match="32 values, the teacher's 48"):
        FeatureTerm(FeatureSettings(projection="none"), student, teacher)
    with pytest.raises(UsageError, match="attention_dropout"):
        FeatureTerm(FeatureSettings(attention_weight=1.0), small_model(attention_dropout=0.1), teacher)
    with pytest.raises(UsageError, match="one of them is not given"):
        build_loss(DistillLossOptions(strategy="feature"), resources=Resources(teacher=teacher))
    other = GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=96, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]])
    )
    with pytest.raises(UnsupportedError, match=r"cannot be mapped.*gpt_neo") as caught:
        FeatureTerm(FeatureSettings(), other, teacher)
    assert "feature.layers" in str(caught.value.hint)
    named = FeatureTerm(FeatureSettings(layers=[(1, 2)]), other, teacher)
    assert named.pairs == [(1, 2)]


def test_maps_of_unlike_numbers_of_heads_are_compared_by_their_means() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.rand(2, h, 3, 3, generator=generator).softmax(-1) for h in (1, 4))
    mask = torch.tensor([[True, True], [True, False]])
    found = map_divergence(ours, theirs, mask)
    wanted = torch.nn.functional.kl_div(ours.mean(1).log(), theirs.mean(1), reduction="none").sum(-1)[:, :-1][mask]
    assert torch.allclose(found, wanted, atol=1e-6)
