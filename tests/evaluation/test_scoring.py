"""Scores against an independent float64 loop; divergence against its definition."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError
from apt.evaluation.scoring import (
    RowScores,
    bits_per_byte,
    divergence,
    divergence_from_logits,
    perplexity,
    score_rows,
    score_together,
)
from apt.evaluation.texts import Rows, cut_documents, rows_from_ids

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 3, "def add(a, b):\n    return a + b\n", "你好，世界。"]


@pytest.fixture(scope="module")
def rows(llama_dir: Path) -> Rows:
    return cut_documents(Checkpoint.open(llama_dir).tokenizer(), TEXTS, 24, "texts")


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> Any:
    return Checkpoint.open(llama_dir).load(dtype=torch.float32)


@pytest.fixture
def other(new_llama: Callable[..., Path], tmp_path: Path) -> Any:
    return Checkpoint.open(new_llama(tmp_path / "other", seed=7)).load(dtype=torch.float32)


def log_probabilities(model: Any, ids: torch.Tensor) -> np.ndarray[Any, Any]:
    """Float64 log-probabilities of one unpadded row, by the definition."""
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double().numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def reference_scores(model: Any, rows: Rows) -> tuple[list[float], list[int]]:
    nll, tokens = [], []
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        length = max(t for t in range(len(labels)) if labels[t] != -100) + 1
        logp = log_probabilities(model, ids[:length])
        counted = [t for t in range(1, length) if labels[t] != -100]
        nll.append(-sum(float(logp[t - 1, labels[t]]) for t in counted))
        tokens.append(len(counted))
    return nll, tokens


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_scores_equal_a_float64_loop_for_every_batch_size(model: Any, rows: Rows, batch_rows: int) -> None:
    nll, tokens = reference_scores(model, rows)
    scores = score_rows(model, rows, batch_rows=batch_rows)
    assert scores.tokens.tolist() == tokens
    assert scores.nll == pytest.approx(nll, rel=1e-5)
    assert scores.nll.dtype == np.float64 and scores.tokens.dtype == np.int64
    assert perplexity(scores).value == pytest.approx(math.exp(sum(nll) / sum(tokens)), rel=1e-5)


def test_small_chunks_give_the_same_scores(model: Any, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_rows(model, rows)
    monkeypatch.setattr("apt.evaluation.scoring.CHUNK_VALUES", 5 * 288)
    monkeypatch.setattr("apt.evaluation.scoring.LOGITS_BUDGET", 7 * 288)
    assert score_rows(model, rows).nll == pytest.approx(whole.nll, rel=1e-6)


def test_transformers_own_loss_agrees(model: Any, rows: Rows) -> None:
    with torch.no_grad():
        loss = model(input_ids=rows.ids, labels=rows.labels).loss
    scores = score_rows(model, rows)
    assert float(loss) == pytest.approx(scores.nll.sum() / scores.tokens.sum(), rel=1e-5)


def test_labels_decide_what_counts(model: Any) -> None:
    rows = rows_from_ids([[0, 5, 6, 7]], source="x")
    rows.labels[0, 2] = -100
    logp = log_probabilities(model, torch.tensor([0, 5, 6, 7]))
    scores = score_rows(model, rows)
    assert scores.tokens.tolist() == [2]
    assert scores.nll[0] == pytest.approx(-logp[0, 5] - logp[2, 7], rel=1e-5)


def test_divergence_follows_its_definition(model: Any, other: Any, rows: Rows) -> None:
    kl: list[float] = []
    same: list[bool] = []
    for ids, length in zip(rows.ids, rows.lengths.tolist(), strict=True):
        p, q = log_probabilities(model, ids[:length])[:-1], log_probabilities(other, ids[:length])[:-1]
        kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
    found = divergence(model, other, rows, batch_rows=2)
    assert found.tokens == rows.tokens == len(kl)
    assert found.kl.value == pytest.approx(np.mean(kl), rel=1e-4)
    assert found.agreement.value == pytest.approx(np.mean(same))
    assert found.kl.low <= found.kl.value <= found.kl.high


def test_a_model_does_not_diverge_from_itself(model: Any, rows: Rows) -> None:
    found = divergence(model, model, rows)
    assert found.kl.value == 0.0 and found.agreement.value == 1.0


def test_models_scored_together_score_as_alone(model: Any, other: Any, rows: Rows) -> None:
    scores, distances = score_together([model, other], rows)
    assert len(distances) == 1
    assert scores[1].nll == pytest.approx(score_rows(other, rows).nll, rel=1e-6)


def test_predictions_of_another_runtime_can_be_compared() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(200, 11)), generator.normal(size=(200, 11))
    logs = [x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (a, b)]
    wanted = float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())
    for first, second in ((a, b), (logs[0], torch.from_numpy(b))):
        assert divergence_from_logits(first, second).kl.value == pytest.approx(wanted, rel=1e-5)
    by_row = divergence_from_logits(a, b, row=np.repeat([3, 9], 100))
    assert by_row.tokens == 200 and by_row.kl.value == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(BadInputError, match="shapes"):
        divergence_from_logits(a, b[:, :5])


def test_a_ruled_out_token_adds_nothing() -> None:
    a = np.array([[0.0, 0.0, -np.inf]])
    b = np.array([[0.0, 0.0, -np.inf]])
    assert divergence_from_logits(a, b).kl.value == 0.0


def test_bits_per_byte_by_all_bytes_or_by_row() -> None:
    scores = RowScores(np.array([10.0, 20.0]), np.array([5, 8]))
    wanted = 30.0 / math.log(2) / 60
    assert bits_per_byte(scores, 60).value == pytest.approx(wanted)
    assert bits_per_byte(scores, (20, 40)).value == pytest.approx(wanted)


def test_the_training_mode_is_given_back(model: Any, rows: Rows) -> None:
    model.train()
    try:
        score_rows(model, rows)
        assert model.training
    finally:
        model.eval()


def test_ids_outside_the_vocabulary_are_refused(model: Any) -> None:
    with pytest.raises(BadInputError, match=r"token ids 0\.\.999"):
        score_rows(model, rows_from_ids([[0, 999]], source="rows"))


def test_nothing_to_count_is_refused(model: Any) -> None:
    with pytest.raises(BadInputError, match="no token to score"):
        score_rows(model, rows_from_ids([[0, 1]], source="rows", lengths=[1]))


def test_other_vocabularies_are_refused(model: Any, rows: Rows, new_llama: Callable[..., Path], tmp_path: Path) -> None:
    wide = Checkpoint.open(new_llama(tmp_path / "wide", vocab_size=300)).load(dtype=torch.float32)
    with pytest.raises(BadInputError, match="vocabularies"):
        divergence(model, wide, rows)


def test_a_fault_of_the_models_code_is_told_and_ours_is_not(new_llama, tmp_path) -> None:
    from apt.checkpoint.reader import Checkpoint
    from apt.evaluation.forward import ForwardError, forward_told

    model = Checkpoint.open(new_llama(tmp_path / "m")).load()
    with pytest.raises(ForwardError, match="LlamaForCausalLM fails: IndexError"), forward_told(model):
        model(input_ids=torch.tensor([[9999]]))
    with pytest.raises(IndexError), forward_told(model):
        [].pop()
    assert not {"forward", "generate"} & set(vars(model))
