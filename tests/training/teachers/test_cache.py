"""A logit cache: what it answers, what it refuses, and how a capture survives."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import VOCAB, small_config, small_model, small_rows

from apt.console.errors import BadInputError, CannotWriteError, NotFoundError, UnsupportedError, UsageError
from apt.training.contract import Resources
from apt.training.data.rows import TokenRows, batch_of, set_aside
from apt.training.runner import run
from apt.training.teachers import capture as capturing
from apt.training.teachers.cache import CacheTeacher, CacheTeacherOptions
from apt.training.teachers.capture import CaptureOptions, CaptureResult, capture


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "SHARD_TOKENS", 64)


def teacher_model() -> Any:
    model = small_model(3).eval().requires_grad_(False)
    model.lm_head.weight.mul_(10.0)  # an untrained head knows no likely ids
    return model


def captured(directory: Path, rows: TokenRows, **options: Any) -> CaptureResult:
    settings = CaptureOptions(**{"k": 16, "batch_rows": 3, **options})
    return capture(teacher_model(), rows, directory, settings, teacher="t", tokenizer="")


def opened(directory: Path, **resources: Any) -> CacheTeacher:
    return CacheTeacher(CacheTeacherOptions(path=str(directory)), Resources(**resources))


def exact(rows: TokenRows, numbers: list[int]) -> torch.Tensor:
    batch = batch_of(rows, numbers)
    with torch.no_grad():
        logits = teacher_model()(input_ids=batch["input_ids"]).logits[:, :-1]
    found: torch.Tensor = torch.log_softmax(logits, -1)[batch["labels"][:, 1:] != -100]
    return found


@pytest.mark.parametrize("encoding", ["packed", "plain"])
def test_it_answers_for_any_rows_in_any_order(tmp_path: Path, encoding: str) -> None:
    rows = small_rows(20)
    rows.labels[4, 3:9] = -100
    rows.labels[7] = -100
    result = captured(tmp_path / "c", rows, encoding=encoding)
    assert result.tokens == rows.tokens and 0.5 < result.mass < 1.0
    teacher = opened(tmp_path / "c", rows_digest=rows.digest(), model=small_model())
    for numbers in ([4, 0, 19], [7, 12], [3]):
        targets = teacher.targets(batch_of(rows, numbers))
        truth = exact(rows, numbers)
        assert targets.kind == "top_k"
        assert torch.equal(targets.ids.sort(-1).values, truth.topk(16).indices.sort(-1).values)
        assert torch.allclose(targets.weights, truth.gather(1, targets.ids).exp(), atol=2e-2)
        assert torch.allclose(targets.weights.sum(-1), truth.exp().gather(1, targets.ids).sum(-1), atol=2e-3)


def test_rows_that_were_set_aside_from_keep_their_numbers(tmp_path: Path) -> None:
    rows = small_rows(10)
    captured(tmp_path / "c", rows)
    training, _ = set_aside(rows, 3)
    first = opened(tmp_path / "c").targets(batch_of(training, [2]))
    second = opened(tmp_path / "c").targets(batch_of(rows, [training.number(2)]))
    assert torch.equal(first.ids, second.ids)


def test_its_error_is_the_one_that_it_states(tmp_path: Path) -> None:
    rows = small_rows(20)
    result = captured(tmp_path / "c", rows)
    targets = opened(tmp_path / "c").targets(batch_of(rows, list(range(20))))
    truth = exact(rows, list(range(20))).double()
    kept = truth.gather(1, targets.ids)
    rest, read_rest = ((1 - x.double().exp().sum(-1)).clamp_min(1e-12) for x in (kept, targets.log_probs))
    kl = (kept.exp() * (kept - targets.log_probs.double())).sum(-1) + rest * (rest / read_rest).log()
    assert float(kl.mean()) == pytest.approx(result.kl_nats, rel=1e-2)
    assert result.kl_nats < 1e-3


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


def test_a_student_learns_from_it_what_it_learns_from_the_teacher_in_memory(tmp_path: Path) -> None:
    rows = small_rows(24)
    capture(teacher_model(), rows, tmp_path / "c", CaptureOptions(k=VOCAB, encoding="plain"))
    students = []
    for name, teacher in (("cache", {"name": "cache", "path": str(tmp_path / "c")}), ("memory", {"name": "memory"})):
        student = small_model()
        config = small_config(loss={"name": "distill", "teacher": teacher}, steps=6)
        resources = Resources(teacher=teacher_model() if name == "memory" else None)
        result = run(config, student, rows, run_dir=tmp_path / name, resources=resources)
        students.append((student, result))
    assert students[0][1].best_eval_loss == pytest.approx(students[1][1].best_eval_loss, rel=1e-3)


def test_other_texts_and_models_are_refused(tmp_path: Path) -> None:
    rows = small_rows(8)
    captured(tmp_path / "c", rows)
    with pytest.raises(UnsupportedError, match="another text"):
        opened(tmp_path / "c", rows_digest=small_rows(8, seed=9).digest())
    with pytest.raises(UnsupportedError, match="96 ids; the model shares 40"):
        opened(tmp_path / "c", model=small_model(vocab_size=40))
    teacher = opened(tmp_path / "c")
    batch = dict(batch_of(rows, [0]))
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0, 5:] = -100
    with pytest.raises(UnsupportedError, match="counts 4 tokens, its cache has 15"):
        teacher.targets(batch)
    with pytest.raises(UnsupportedError, match="inner states"):
        teacher.body(batch, frozenset())
    with pytest.raises(NotFoundError, match="no whole logit cache"):
        opened(tmp_path / "none")


def damage_name(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace("shard-00001.bin", "../../etc/passwd"))


def damage_shard(directory: Path) -> None:
    path = directory / "shard-00001.bin"
    data = bytearray(path.read_bytes())
    data[10] ^= 255
    path.write_bytes(bytes(data))


def damage_offsets(directory: Path) -> None:
    np.save(directory / "rows.npy", np.arange(9))


def cut_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text()[:200])


def cut_shard(directory: Path) -> None:
    path = directory / "shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [damage_name, damage_shard, damage_offsets, cut_manifest, cut_shard])
def test_damage_is_told(tmp_path: Path, harm: Any) -> None:
    rows = small_rows(8)
    captured(tmp_path / "c", rows)
    harm(tmp_path / "c")
    with pytest.raises(BadInputError):
        opened(tmp_path / "c").targets(batch_of(rows, list(range(8))))


def test_another_format_is_refused(tmp_path: Path) -> None:
    captured(tmp_path / "c", small_rows(8))
    path = tmp_path / "c" / "manifest.json"
    held = json.loads(path.read_text())
    held["plan"]["format"] = 2
    path.write_text(json.dumps(held))
    with pytest.raises(UnsupportedError, match="format 2; this version reads 1"):
        opened(tmp_path / "c")


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
        "    for found in inner(*a):\n"
        "        print('.', flush=True); time.sleep(0.05); yield found\n"
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
    import resource

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
