"""A logit cache as a teacher: what it answers, and what it refuses."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import Ragged, captured, exact, opened, teacher_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_helpers import VOCAB, small_config, small_model, small_rows

from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError, UsageError
from apt.registry import CORE_COMPONENTS, Component, Registry
from apt.training.contract import Batch, Resources
from apt.training.data.loader import BatchLoader
from apt.training.data.rows import batch_of, set_aside
from apt.training.forward import last_hidden
from apt.training.losses.head import Head
from apt.training.runner import run
from apt.training.samplers.epochs import Shuffled, ShuffledOptions
from apt.training.sections import Section
from apt.training.teachers import cache
from apt.training.teachers.capture import CaptureOptions, capture
from apt.training.teachers.contract import DenseTargets, SparseTargets
from apt.training.teachers.sparse import top_k_of


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
    with pytest.raises(UnsupportedError, match="row 0 is not the text that was captured"):
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


@pytest.mark.parametrize("encoding", ["packed", "plain"])
def test_rows_of_many_lengths_and_packed_documents(tmp_path: Path, encoding: str) -> None:
    rows = Ragged(23)
    captured(tmp_path / "c", rows, encoding=encoding)
    teacher = opened(tmp_path / "c", rows_digest=rows.digest())
    for numbers in ([22, 0, 6], [5], [13, 13], list(range(23))):
        targets, truth = teacher.targets(batch_of(rows, numbers)), exact(rows, numbers)
        assert torch.equal(targets.ids.sort(-1).values, truth.topk(16).indices.sort(-1).values)
        assert (targets.log_probs - truth.gather(1, targets.ids)).abs().max() < 0.1


def test_shuffled_rows_of_several_processes_get_their_own_targets(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache, "OPEN_SHARDS", 1)
    rows = Ragged(40)
    captured(tmp_path / "c", rows, encoding="plain")
    training, _ = set_aside(rows, 5)
    for process in range(2):
        loader = BatchLoader(
            training,
            Shuffled(ShuffledOptions(), training, batch_rows=3, seed=4),
            batch_rows=3,
            batches=30,
            process=process,
            processes=2,
        )
        teacher = opened(tmp_path / "c", rows_digest=rows.digest())
        for batch, _ in zip(loader, range(30), strict=False):
            targets, truth = teacher.targets(batch), exact(rows, batch["row"].tolist())
            assert torch.allclose(targets.log_probs, truth.gather(1, targets.ids), atol=6e-3)
        assert len(teacher._mapped) == 1 and len(teacher._sound) > 1


class TopKOptions(Section):
    """Options of the teacher below."""

    name: str = "top_k_memory"


@dataclass
class TopKInMemory:
    """The likeliest ids of a teacher in memory, as a cache keeps them."""

    options: TopKOptions
    resources: Resources
    needs = frozenset({"teacher"})
    offers: frozenset[str] = frozenset()

    def targets(self, batch: Batch, *, rng: Any = None, body: Any = None) -> SparseTargets:
        model: Any = self.resources.teacher
        with torch.no_grad():
            found = top_k_of(DenseTargets(last_hidden(model, batch), Head.of(model)), 16)
        rounded = found.log_probs.half().float()
        return SparseTargets(found.ids, rounded.exp(), rounded)


def test_training_with_it_is_training_with_the_same_targets_from_memory(tmp_path: Path) -> None:
    rows = small_rows(24)
    captured(tmp_path / "c", rows, encoding="plain")
    here = f"{__name__}:"
    told = Component("teacher", "top_k_memory", f"{here}TopKInMemory", f"{here}TopKOptions", "for this test")
    registry = Registry((*CORE_COMPONENTS, told))
    students = []
    for name, teacher in (("cache", {"name": "cache", "path": str(tmp_path / "c")}), ("memory", TopKOptions())):
        student = small_model()
        loss = {"name": "distill", "alpha": 0.7}
        config = small_config(loss=loss, steps=8, grad_accum=2, batch_rows=3)
        section = config.train.loss.model_copy(update={"teacher": section_of(teacher, registry)})
        config = config.model_copy(update={"train": config.train.model_copy(update={"loss": section})})
        resources = Resources(teacher=teacher_model() if name == "memory" else None)
        run(config, student, rows, run_dir=tmp_path / name, resources=resources, registry=registry)
        students.append(student.state_dict())
    start = small_model().state_dict()
    for key, value in students[0].items():
        moved = (value - start[key]).abs().max()
        assert (value - students[1][key]).abs().max() <= 1e-2 * moved + 1e-7, key


def section_of(teacher: Any, registry: Registry) -> Section:
    if isinstance(teacher, Section):
        return teacher
    return cache.CacheTeacherOptions(**teacher)


def test_a_row_of_another_text_is_refused_even_where_nobody_told_the_digest(tmp_path: Path) -> None:
    rows = Ragged(9)
    captured(tmp_path / "c", rows)
    teacher = opened(tmp_path / "c")
    whole = batch_of(rows, [6, 8])
    teacher.targets(whole)
    for key in ("input_ids", "position_ids"):
        changed = {**whole, key: whole[key].clone()}
        changed[key][0, 0] += 1
        with pytest.raises(UnsupportedError, match="row 6 is not the text"):
            teacher.targets(changed)
    with pytest.raises(UnsupportedError, match="row 8 is not the text"):
        teacher.targets({**whole, "row": torch.tensor([8, 6])})
    with pytest.raises(UnsupportedError, match="row 9 was not captured"):
        teacher.targets({**whole, "row": torch.tensor([6, 9])})
    with pytest.raises(UnsupportedError, match="row -1 was not captured"):
        teacher.targets({**whole, "row": torch.tensor([-1, 8])})
    with pytest.raises(UnsupportedError, match="of a stream have none"):
        teacher.targets({key: value for key, value in whole.items() if key != "row"})


def test_what_pads_a_row_does_not_matter(tmp_path: Path) -> None:
    rows = Ragged(9)
    captured(tmp_path / "c", rows)
    teacher = opened(tmp_path / "c")
    batch = batch_of(rows, [0, 6])
    padded = {**batch, "input_ids": batch["input_ids"].clone()}
    padded["input_ids"][0, rows.length(0) :] = 77
    assert torch.equal(teacher.targets(padded).ids, teacher.targets(batch_of(rows, [0, 6])).ids)


class Words:
    """As much of a tokenizer as its fingerprint is made of."""

    chat_template = None

    def __init__(self, *words: str) -> None:
        self.special_tokens_map: dict[str, str] = {}
        self._words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self._words)}


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from apt.training.data.files import fingerprint

    rows, told = small_rows(8), fingerprint(Words("a", "b"))
    capture(teacher_model(), rows, tmp_path / "c", CaptureOptions(k=4), tokenizer=told)
    opened(tmp_path / "c", tokenizer=Words("a", "b"))
    with pytest.raises(UnsupportedError, match="captured with another tokenizer"):
        opened(tmp_path / "c", tokenizer=Words("b", "a"))
    with pytest.raises(UsageError, match="for one tokenizer"):
        opened(tmp_path / "c")


def test_the_runner_refuses_a_cache_of_other_rows(tmp_path: Path) -> None:
    captured(tmp_path / "c", small_rows(24))
    config = small_config(loss={"name": "distill", "teacher": {"name": "cache", "path": str(tmp_path / "c")}})
    with pytest.raises(UnsupportedError, match="another text"):
        run(config, small_model(), small_rows(24, seed=7), run_dir=tmp_path / "r")


def resealed(directory: Path, name: str, data: bytes) -> None:
    """Replace a file and its hash: what somebody who means harm would do."""
    manifest = directory / "manifest.json"
    old = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    (directory / name).write_bytes(data)
    manifest.write_text(manifest.read_text().replace(old, hashlib.sha256(data).hexdigest()))


def test_no_pickle_is_read(tmp_path: Path) -> None:
    rows = small_rows(8)
    captured(tmp_path / "c", rows)
    held = io.BytesIO()
    np.save(held, np.array([print] * 9, dtype=object), allow_pickle=True)
    resealed(tmp_path / "c", "rows.npy", held.getvalue())
    with pytest.raises(BadInputError, match="not an array"):
        opened(tmp_path / "c")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    for encoding in ("packed", "plain"):
        captured(place / encoding, small_rows(8), encoding=encoding)
    return place


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_broken_manifest_is_one_clear_line(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    text = (sound / "packed" / "manifest.json").read_bytes()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(begin + 12, len(text))))
    changed = text[:begin] + data.draw(st.binary(max_size=12)) + text[end:]
    sent = data.draw(st.sampled_from([changed, text[:begin], b"[]", b'{"plan": []}', b"[" * 100_000]))
    for path in (sound / "packed").iterdir():
        target = tmp_path / path.name
        target.write_bytes(sent if path.name == "manifest.json" else path.read_bytes())
    try:
        opened(tmp_path).targets(batch_of(small_rows(8), [0, 7]))
    except AptError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), encoding=st.sampled_from(["packed", "plain"]), few=st.booleans())
def test_forged_records_are_refused_or_finite(sound: Path, tmp_path: Path, seed: int, encoding: str, few: bool) -> None:
    rng = np.random.default_rng(seed)
    for path in (sound / encoding).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "shard-00000.bin"
    old = np.frombuffer(path.read_bytes(), np.uint8)
    noise = rng.integers(0, 256, len(old), dtype=np.uint8)
    forged = np.where(rng.random(len(old)) < (0.001 if few else 0.5), noise, old).astype(np.uint8)
    if (forged == old).all():
        return
    resealed(tmp_path, path.name, forged.tobytes())
    try:
        targets = opened(tmp_path).targets(batch_of(small_rows(8), [0, 1]))
    except BadInputError:
        return
    assert bool(targets.log_probs.isfinite().all()) and int(targets.ids.min()) >= 0 and int(targets.ids.max()) < VOCAB


def test_a_manifest_that_asks_for_more_than_there_is(tmp_path: Path) -> None:
    captured(tmp_path / "c", small_rows(8))
    path = tmp_path / "c" / "manifest.json"
    whole = json.loads(path.read_text())
    for key, value in (("k", 10**9), ("k", 97), ("vocabulary", 10**400), ("rows", 10**12), ("tokens", 10**15)):
        held = json.loads(json.dumps(whole))
        held["plan"][key] = value
        path.write_text(json.dumps(held))
        with pytest.raises(BadInputError):
            opened(tmp_path / "c")


def test_a_run_on_what_was_left_learns_from_a_cache_of_all_rows(tmp_path: Path) -> None:
    rows = small_rows(24)
    captured(tmp_path / "c", rows)
    training, evaluation = set_aside(rows, 4)
    inner, _ = set_aside(training, 4)
    assert [inner.number(i) for i in range(2)] == [training.number(1), training.number(2)]
    config = small_config(loss={"name": "distill", "teacher": {"name": "cache", "path": str(tmp_path / "c")}})
    result = run(config, small_model(), inner, evaluation=evaluation, run_dir=tmp_path / "run")
    assert result.metrics["kd/kl_token"] > 0.0
