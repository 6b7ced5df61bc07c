"""Capturing: what is stated of it, and how it survives a kill and a full disk."""

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from cache_helpers import Ragged, captured, exact, opened, teacher_model
from training_helpers import VOCAB, small_model, small_rows

from apt.console.errors import BadInputError, CannotWriteError, NotFoundError, UsageError
from apt.training.data.rows import TokenRows, batch_of
from apt.training.teachers.capture import CaptureOptions, capture


def test_its_error_is_the_one_that_it_states(tmp_path: Path) -> None:
    rows = small_rows(20)
    result = captured(tmp_path / "c", rows)
    targets = opened(tmp_path / "c").targets(batch_of(rows, list(range(20))))
    truth = exact(rows, list(range(20))).double()
    kept = truth.gather(1, targets.ids)
    rest, read_rest = ((1 - x.double().exp().sum(-1)).clamp_min(1e-12) for x in (kept, targets.log_probs))
    kl = (kept.exp() * (kept - targets.log_probs.double())).sum(-1) + rest * (rest / read_rest).log()
    assert float(kl.mean()) == pytest.approx(result.kl_nats, rel=1e-2)
    error = (kept - targets.log_probs.double()).abs()
    assert float(error.mean()) == pytest.approx(result.mean_log_prob, rel=1e-2)
    assert float(error.max()) == pytest.approx(result.worst_log_prob, rel=1e-2)
    assert 0 < result.kl_nats < 1e-3 and "KL of the encoding" in str(result.tables())


def test_draws_are_an_unbiased_estimate(tmp_path: Path) -> None:
    rows = TokenRows(torch.tensor([[5, 7]]), torch.tensor([[-100, 7]]))
    truth = exact(rows, [0])[0].exp()
    draws: Counter[int] = Counter()
    for seed in range(40):
        captured(tmp_path / str(seed), rows, kind="sampled", k=256, seed=seed)
        targets = opened(tmp_path / str(seed)).targets(batch_of(rows, [0]))
        assert targets.kind == "sampled" and float(targets.weights.sum()) == pytest.approx(1.0)
        draws.update(targets.ids[0].tolist())
    total = sum(draws.values())
    found = torch.tensor([draws[i] / total for i in range(VOCAB)])
    error = (truth * (1 - truth) / total).sqrt()
    assert float(((found - truth) / error).abs().max()) < 4.5  # of 96 ids


def test_a_directory_of_another_capture_is_refused(tmp_path: Path) -> None:
    captured(tmp_path / "c", small_rows(8))
    with pytest.raises(UsageError, match="another capture: k"):
        captured(tmp_path / "c", small_rows(8), k=8)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        captured(tmp_path / "d", small_rows(8))


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_a_capture_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    rows = small_rows(40)
    captured(tmp_path / "whole", rows, kind="sampled")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from training_helpers import small_model, small_rows\n"
        "from apt.training.teachers import capture as c\n"
        "c.SHARD_TOKENS = 64\n"
        "inner = c._kept\n"
        "def slow(*a):\n"
        "    for number, found in enumerate(inner(*a), 1):\n"
        "        print('.', flush=True); time.sleep(600 if number == 5 else 0); yield found\n"
        "c._kept = slow\n"
        "model = small_model(3).eval().requires_grad_(False)\n"
        "model.lm_head.weight.mul_(10.0)\n"
        "options = c.CaptureOptions(k=16, batch_rows=3, kind='sampled')\n"
        f"c.capture(model, small_rows(40), Path({str(tmp_path / 'killed')!r}), options, teacher='t')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(NotFoundError, match="did not end"):
        opened(tmp_path / "killed")
    shards = list((tmp_path / "killed").glob("shard-*.bin"))
    assert shards
    whole = [p for p in shards if p.with_suffix(".json").exists()]
    stamps = [p.stat().st_mtime_ns for p in whole]
    captured(tmp_path / "killed", rows, kind="sampled")
    kept = {name: data for name, data in contents(tmp_path / "killed").items() if not name.startswith(".")}
    assert kept == contents(tmp_path / "whole")
    assert whole and [p.stat().st_mtime_ns for p in whole] == stamps


def test_a_full_disk_is_told_and_the_capture_goes_on_later(tmp_path: Path) -> None:
    rows = small_rows(40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
        with pytest.raises(CannotWriteError):
            captured(tmp_path / "c", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert captured(tmp_path / "c", rows).tokens == rows.tokens


def test_what_a_kill_left_of_the_plan_is_no_other_file(tmp_path: Path) -> None:
    rows = small_rows(8)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".plan.json.host-1-ab.partial").write_bytes(b"{")
    assert captured(tmp_path / "c", rows).tokens == rows.tokens


def test_a_capture_that_is_complete_is_left_alone(tmp_path: Path) -> None:
    rows = small_rows(8)
    first = captured(tmp_path / "c", rows)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    second = captured(tmp_path / "c", rows)
    assert (first.kl_nats, first.size_bytes) == (second.kl_nats, second.size_bytes)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}


def test_the_teacher_speaks_without_dropout_and_keeps_its_mode(tmp_path: Path) -> None:
    rows = Ragged(9)
    model = small_model(3, attention_dropout=0.5).requires_grad_(False)
    model.lm_head.weight.mul_(10.0)
    model.train()
    capture(model, rows, tmp_path / "dropout", CaptureOptions(k=16, batch_rows=3), teacher="t")
    assert model.training
    captured(tmp_path / "c", rows)
    assert contents(tmp_path / "dropout") == contents(tmp_path / "c")


def test_rows_that_the_teacher_cannot_read_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = small_rows(8)
    strange = TokenRows(rows.ids.clone(), rows.labels)
    strange.ids[5, 3] = VOCAB
    with pytest.raises(BadInputError, match="row 5 holds token ids from 1 to 96; the teacher's vocabulary ends at 95"):
        captured(tmp_path / "c", strange)
    silent = TokenRows(rows.ids, torch.full_like(rows.labels, -100))
    with pytest.raises(BadInputError, match="nothing to capture"):
        captured(tmp_path / "c", silent)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_only_shared_ids_are_kept_and_they_are_the_whole(tmp_path: Path, kind: str) -> None:
    rows = small_rows(8)
    options = CaptureOptions(k=64, kind=kind)  # type: ignore[arg-type]
    result = capture(teacher_model(), rows, tmp_path / "c", options, shared_vocab=40)
    targets = opened(tmp_path / "c", model=small_model(vocab_size=40)).targets(batch_of(rows, [0, 1]))
    assert int(targets.ids.max()) < 40 and result.k == (40 if kind == "top_k" else 64)
    truth = exact(rows, [0, 1])[:, :40].log_softmax(-1)
    assert torch.allclose(targets.weights.sum(-1), torch.ones(30), atol=1e-3)
    assert (targets.log_probs.exp() - truth.gather(1, targets.ids).exp()).abs().max() < 0.02


def test_ids_that_the_teacher_never_says_have_a_floor(tmp_path: Path) -> None:
    class Silenced(torch.nn.Linear):
        pass

    model = teacher_model()
    silenced = Silenced(32, VOCAB)
    silenced.weight.data = model.lm_head.weight.data.clone()
    silenced.bias.data.zero_()[50:] = -torch.inf
    model.set_output_embeddings(silenced.requires_grad_(False))
    for encoding in ("packed", "plain"):
        capture(model, small_rows(8), tmp_path / encoding, CaptureOptions(k=VOCAB, encoding=encoding))  # type: ignore[arg-type]
        targets = opened(tmp_path / encoding).targets(batch_of(small_rows(8), [0]))
        never = targets.ids >= 50
        assert bool(targets.log_probs.isfinite().all()) and float(targets.weights[never].max()) < 1e-20
        assert torch.allclose(targets.weights.sum(-1), torch.ones(15), atol=1e-3)
