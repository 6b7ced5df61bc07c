"""What is measured on is never fitted on."""

from pathlib import Path

import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError
from apt.evaluation.texts import Rows, load_rows, rows_from_ids, save_rows
from apt.plugins.optional.pruning.options import PruneOptions
from apt.plugins.optional.pruning.texts import Texts, load_texts, text_of, training_text


@pytest.fixture(scope="module")
def dense(llama_dir: Path) -> Checkpoint:
    return Checkpoint.open(llama_dir)


def options(tmp_path: Path, **changes) -> PruneOptions:
    return PruneOptions(model="m", output=tmp_path / "out", **changes)


def lines(rows: Rows) -> set[tuple[int, ...]]:
    return {tuple(row) for row in rows.ids.tolist()}


def disjoint(texts: Texts) -> bool:
    return not lines(texts.calibration) & lines(texts.heldout)


def rows(count: int, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return rows_from_ids(torch.randint(2, 280, (count, 32), generator=generator), source="test")


def test_the_splits_of_a_file_are_used_as_they_are(dense: Checkpoint, tmp_path: Path):
    save_rows({"calibration": rows(9), "heldout": rows(5, 1)}, tmp_path / "t.npz")
    texts = load_texts(options(tmp_path, calibration=str(tmp_path / "t.npz")), dense)
    assert (len(texts.calibration), len(texts.heldout)) == (9, 5) and disjoint(texts)


@pytest.mark.parametrize("heldout", [False, True])
def test_a_file_without_splits_is_cut_in_two(dense: Checkpoint, tmp_path: Path, heldout: bool):
    save_rows({"calibration": rows(40)}, tmp_path / "t.npz")
    text = str(tmp_path / "t.npz")
    told = options(tmp_path, calibration=text, heldout=text if heldout else None)
    texts = load_texts(told, dense)
    assert (len(texts.calibration), len(texts.heldout)) == (36, 4) and disjoint(texts)


def test_a_plain_text_is_cut_in_two(dense: Checkpoint, tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"{n} apples are {n} fruits.\n" for n in range(400)), encoding="utf-8")
    texts = load_texts(options(tmp_path, calibration=str(path), tokens=512), dense)
    assert texts.calibration.tokens <= 512 and disjoint(texts)
    training = load_rows(training_text(options(tmp_path, calibration=str(path)), dense, tmp_path), split="train",
                         checkpoint=dense)  # fmt: skip
    assert len(training) > len(texts.calibration) and not lines(training) & lines(texts.heldout)


def test_another_text_may_be_measured_on(dense: Checkpoint, tmp_path: Path):
    save_rows({"calibration": rows(9)}, tmp_path / "a.npz")
    save_rows({"heldout": rows(7, 1)}, tmp_path / "b.npz")
    told = options(tmp_path, calibration=str(tmp_path / "a.npz"), heldout=str(tmp_path / "b.npz"), heldout_rows=6)
    texts = load_texts(told, dense)
    assert (len(texts.calibration), len(texts.heldout)) == (9, 6)
    assert training_text(told, dense, tmp_path) == told.calibration


def test_a_model_samples_other_rows_to_measure_on(dense: Checkpoint, tmp_path: Path):
    texts = load_texts(options(tmp_path, tokens=512), dense, dense.load(dtype=torch.float32))
    assert texts.calibration.sampled and texts.heldout.sampled and disjoint(texts)


def test_the_text_when_none_is_named(dense: Checkpoint, tmp_path: Path):
    assert text_of(options(tmp_path), dense) == "self"
    assert text_of(options(tmp_path), Checkpoint.open("tiny")) == "embedded"
    assert text_of(options(tmp_path, stream=True), dense) == "embedded"
    assert text_of(options(tmp_path, stream=True, calibration="a.txt"), dense) == "a.txt"


def test_a_text_too_short_to_be_cut_in_two_is_refused(dense: Checkpoint, tmp_path: Path):
    save_rows({"calibration": rows(2)}, tmp_path / "t.npz")
    with pytest.raises(BadInputError, match="too few to fit and measure on"):
        load_texts(options(tmp_path, calibration=str(tmp_path / "t.npz")), dense)
