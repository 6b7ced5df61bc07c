"""Every way to a divergence against the definition in float64: loss within 1e-6, gradients within 1e-5, relative.

The ways: the teacher's whole distributions, its likeliest ids, a sample of it, and what a cache on disk holds of it
(its own error against the teacher is stated and tested where it is captured). The models are whole ones, so that tied
heads, masks and weights of tokens are seen as a run sees them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from losses_reference import in_float64, widen_head
from training_helpers import VOCAB, small_model, small_rows

from apt.training.contract import Resources, token_weights
from apt.training.data.rows import TokenRows
from apt.training.forward import last_hidden, targets_of
from apt.training.losses import linear
from apt.training.losses.divergences import DIVERGENCES
from apt.training.losses.head import Head
from apt.training.losses.linear import linear_loss
from apt.training.losses.terms import Terms
from apt.training.teachers.cache import CacheTeacher, CacheTeacherOptions
from apt.training.teachers.capture import CaptureOptions, capture
from apt.training.teachers.contract import DenseTargets, SparseTargets, Targets
from apt.training.teachers.sparse import sample_of, top_k_of

FORMS = ("tied", "untied", "bias", "softcap", "temperature", "student_padded", "teacher_padded", "weights",
         "masked_row", "with_labels")  # fmt: skip
PATHS = [("dense", name) for name in sorted(DIVERGENCES)] + [("top_k", name) for name in sorted(DIVERGENCES)]
PATHS += [("sampled", "forward_kl"), ("cached", "forward_kl"), ("cached", "reverse_kl"), ("packed", "jsd")]
CASES = [
    (path, name, form)
    for path, name in PATHS
    for form in FORMS
    if path == "dense" or form != "temperature"  # refused: test_sparse.py
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks and blocks, the last ones short."""
    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(linear, "MIN_CHUNK_TOKENS", 25)
    monkeypatch.setattr(linear, "BLOCK_ELEMENTS", VOCAB * 10)


def models_of(form: str) -> tuple[Any, Any]:
    """Student and teacher; both far from uniform, or nothing could be told apart."""
    padded = {"student_padded": (VOCAB + 7, VOCAB), "teacher_padded": (VOCAB, VOCAB + 7)}.get(form, (VOCAB, VOCAB))
    tied = form != "untied"
    student = small_model(0, vocab_size=padded[0], tie_word_embeddings=tied)
    teacher = small_model(1, vocab_size=padded[1], hidden_size=48, tie_word_embeddings=False)
    cap = 3.0 if form == "softcap" else None
    widen_head(student, bias=form == "bias", softcap=cap)
    widen_head(teacher, bias=form == "bias", softcap=cap)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(1.5)
    return student, teacher.eval()


def batch_of(form: str) -> dict[str, torch.Tensor]:
    rows = small_rows(5)
    batch = {"input_ids": rows.ids, "labels": rows.labels.clone()}
    if form == "masked_row":
        batch["labels"][2] = -100
        batch["labels"][3, 9:] = -100
    if form == "weights":
        batch["weights"] = torch.rand(rows.ids.shape, generator=torch.Generator().manual_seed(5)) * 3
    return batch


def targets_by(
    path: str, teacher: Any, batch: Any, shared: int | None, k: int = 12, folder: Path | None = None
) -> Targets:
    if path in ("cached", "packed"):
        assert folder is not None
        options = CaptureOptions(k=k, encoding="packed" if path == "packed" else "plain")
        capture(teacher, TokenRows(batch["input_ids"], batch["labels"]), folder, options, shared_vocab=shared)
        held = CacheTeacher(CacheTeacherOptions(path=str(folder)), Resources())
        return held.targets({**batch, "row": torch.arange(len(batch["labels"]))})
    with torch.no_grad():
        dense = DenseTargets(last_hidden(teacher, batch), Head.of(teacher))
    if path == "top_k":
        return top_k_of(dense, k, shared_vocab=shared)
    if path == "sampled":
        return sample_of(dense, k, rng=torch.Generator().manual_seed(3), shared_vocab=shared)
    return dense


def ours(student: Any, batch: Any, terms: Terms, targets: Targets) -> tuple[float, dict[str, torch.Tensor]]:
    loss, _ = linear_loss(
        last_hidden(student, batch), Head.of(student), targets_of(batch), terms, targets,
        weights=token_weights(batch),
    )  # fmt: skip
    student.zero_grad()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


def assert_near(
    found: tuple[float, dict[str, torch.Tensor]],
    wanted: tuple[float, dict[str, torch.Tensor]],
    *,
    loss: float = 1e-6,
    gradient: float = 1e-5,
) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=loss)
    assert found[1].keys() == wanted[1].keys()
    # Relative to all gradients together: a parameter that hardly matters has no digits of its own.
    off = sum(float((found[1][n].double() - g).square().sum()) for n, g in wanted[1].items())
    norm = sum(float(g.square().sum()) for g in wanted[1].values())
    assert (off / norm) ** 0.5 < gradient
    for name, g in wanted[1].items():
        assert float((found[1][name].double() - g).norm()) < gradient * float(g.norm()) + 1e-2 * gradient * norm**0.5


@pytest.mark.parametrize(("path", "divergence", "form"), CASES)
def test_equal_to_float64(path: str, divergence: str, form: str, tmp_path: Path) -> None:
    student, teacher = models_of(form)
    batch = batch_of(form)
    terms = Terms(
        alpha=0.6 if form == "with_labels" else 1.0,
        temperature=2.5 if form == "temperature" else 1.0,
        divergence=divergence,
        label_smoothing=0.1 if form == "with_labels" else 0.0,
        z_loss=1e-3 if form == "with_labels" else 0.0,
        shared_vocab=VOCAB if form.endswith("padded") else None,
    )
    targets = targets_by(path, teacher, batch, terms.shared_vocab, folder=tmp_path)
    known = targets if isinstance(targets, SparseTargets) else None
    assert_near(ours(student, batch, terms, targets), in_float64(student, teacher, batch, terms, known))


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_all_ids_known_is_the_whole_distribution(divergence: str) -> None:
    student, teacher = models_of("tied")
    batch, terms = batch_of("tied"), Terms(alpha=1.0, divergence=divergence)
    targets = targets_by("top_k", teacher, batch, None, k=VOCAB)
    assert_near(ours(student, batch, terms, targets), in_float64(student, teacher, batch, terms, None))


@pytest.mark.parametrize(("path", "divergence"), [p for p in PATHS if p[0] not in ("cached", "packed")])
def test_a_student_that_is_its_teacher_has_no_loss(path: str, divergence: str) -> None:
    student, _ = models_of("untied")
    batch = batch_of("masked_row")
    targets = targets_by(path, student, batch, None)
    loss, gradients = ours(student, batch, Terms(alpha=1.0, divergence=divergence), targets)
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    assert abs(loss) / tokens < 1e-6
    # A sample's gradient is zero in expectation only, and the slope of |q - p| is any number where they are equal.
    if path != "sampled" and (path, divergence) != ("top_k", "tvd"):
        assert max(float(g.abs().max()) for g in gradients.values()) < 1e-4


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_bf16_products_stay_within_their_bound(divergence: str) -> None:
    """Logits that are rounded to 8 bits: the loss within 1 %, the gradients within 5 %."""
    student, teacher = models_of("tied")
    batch, terms = batch_of("tied"), Terms(alpha=1.0, divergence=divergence)
    wanted = in_float64(student, teacher, batch, terms, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(student, batch, terms, targets_by("dense", teacher, batch, None))
    assert all(g.dtype == torch.float32 for g in found[1].values())
    assert found[0] == pytest.approx(wanted[0], rel=1e-2)
    off = sum(float((found[1][n].double() - g).square().sum()) for n, g in wanted[1].items())
    assert (off / sum(float(g.square().sum()) for g in wanted[1].values())) ** 0.5 < 5e-2


def test_a_head_in_bf16_sums_its_chunks_in_fp32() -> None:
    """A sum of 200 chunks in bf16 would be off by some percent; the result is rounded once."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5000, 16, generator=generator).abs().bfloat16().requires_grad_()
    weight = (torch.randn(8, 16, generator=generator) * 0.1).bfloat16().requires_grad_()
    targets = torch.randint(8, (5000,), generator=generator)
    linear_loss(hidden, Head(weight), targets, Terms())[0].backward()
    wide = weight.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(hidden.detach().double() @ wide.T, targets, reduction="sum").backward()
    assert weight.grad is not None and wide.grad is not None and weight.grad.dtype == torch.bfloat16
    assert float((weight.grad.double() - wide.grad).norm() / wide.grad.norm()) < 5e-3
