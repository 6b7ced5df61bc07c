"""Token rows: every token counted once, bytes that add up, files of every kind, clear refusals."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, NotFoundError, TargetExistsError, UsageError
from apt.evaluation.texts import (
    Rows,
    cut_documents,
    heldout_text,
    library_texts,
    load_rows,
    rows_from_ids,
    save_rows,
)

TEXT = "The quick brown fox jumps over the lazy dog. 你好，世界。 1234567890 — naïve\n" * 7


@pytest.fixture(scope="module")
def checkpoint(llama_dir: Path) -> Checkpoint:
    return Checkpoint.open(llama_dir)


def counted_ids(rows: Rows) -> list[int]:
    return [int(i) for i in rows.labels[rows.labels != -100]]


@pytest.mark.parametrize("window", [2, 3, 16, 128, 5000])
def test_every_token_of_the_text_is_counted_exactly_once(checkpoint: Checkpoint, window: int) -> None:
    tokenizer = checkpoint.tokenizer()
    rows = cut_documents(tokenizer, [TEXT], window, "a text")
    expected = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert counted_ids(rows) == expected
    assert rows.tokens == len(expected)
    assert (rows.ids[:, 0] == tokenizer.bos_token_id).all()
    assert (rows.labels[:, 0] == -100).all()
    assert rows.ids.shape[1] <= window
    assert rows.n_bytes == len(TEXT.encode())
    assert rows.row_bytes is not None and sum(rows.row_bytes) == rows.n_bytes


def test_bytes_of_a_row_are_those_of_its_tokens(checkpoint: Checkpoint) -> None:
    text = "plain ascii words only " * 20
    tokenizer = checkpoint.tokenizer()
    rows = cut_documents(tokenizer, [text], 9, "a text")
    assert rows.row_bytes is not None
    for labels, n in zip(rows.labels, rows.row_bytes, strict=True):
        assert len(tokenizer.decode(labels[labels != -100]).encode()) == n


def test_without_bos_only_the_first_token_of_a_document_is_not_counted(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer()
    tokenizer.bos_token = None
    rows = cut_documents(tokenizer, [TEXT, "second one"], 16, "a text")
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (TEXT, "second one")]
    assert counted_ids(rows) == ids[0][1:] + ids[1][1:]
    first = len(tokenizer.decode(ids[0][:1]).encode()) + len(tokenizer.decode(ids[1][:1]).encode())
    assert rows.n_bytes == len((TEXT + "second one").encode()) - first
    assert int(rows.ids[1, 0]) == int(rows.ids[0, -1])


def test_padding_is_on_the_right_and_not_counted(checkpoint: Checkpoint) -> None:
    rows = cut_documents(checkpoint.tokenizer(), ["abc", "a much longer text than that"], 64, "two")
    lengths = rows.lengths.tolist()
    assert lengths[0] < lengths[1] == rows.ids.shape[1]
    assert (rows.labels[0, lengths[0] :] == -100).all()


def test_rows_survive_a_file_and_the_file_is_the_same_every_time(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = load_rows("embedded", split="heldout", checkpoint=checkpoint, window=32, max_rows=8)
    short = cut_documents(checkpoint.tokenizer(), ["short", "somewhat longer"], 32, "x")
    save_rows({"heldout": rows, "train": short}, tmp_path / "a.npz")
    save_rows({"heldout": rows, "train": short}, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for split, wanted in (("heldout", rows), ("train", short)):
        again = load_rows(tmp_path / "a.npz", split=split, checkpoint=checkpoint)  # type: ignore[arg-type]
        assert torch.equal(again.ids, wanted.ids)
        assert torch.equal(again.labels, wanted.labels)
        assert again.row_bytes == wanted.row_bytes
    with pytest.raises(TargetExistsError):
        save_rows({"heldout": rows}, tmp_path / "a.npz")


def test_the_embedded_splits_share_no_text() -> None:
    calibration, train = set(library_texts("calibration")), set(library_texts("train"))
    assert calibration and train and calibration.isdisjoint(train)
    assert 0.05 < len(calibration) / len(train) < 0.2
    heldout = heldout_text()
    assert not any(text in heldout for text in calibration | train if len(text) > 1000)


def test_embedded_rows_come_from_many_modules(checkpoint: Checkpoint) -> None:
    rows = load_rows("embedded", split="calibration", checkpoint=checkpoint, window=64, max_rows=32)
    assert len(rows) == 32
    again = load_rows("embedded", split="calibration", checkpoint=checkpoint, window=64, max_rows=32)
    assert torch.equal(rows.ids, again.ids)


def test_sampled_splits_differ_and_repeat(checkpoint: Checkpoint) -> None:
    model = checkpoint.load(dtype=torch.float32)
    splits = {
        split: load_rows("self", split=split, checkpoint=checkpoint, window=24, max_rows=5, model=model)
        for split in ("calibration", "train", "heldout")
    }
    seen = [tuple(row) for rows in splits.values() for row in rows.ids.tolist()]
    assert len(set(seen)) == 15
    again = load_rows("self", split="train", checkpoint=checkpoint, window=24, max_rows=5)
    assert torch.equal(again.ids, splits["train"].ids)
    assert again.n_bytes is None
    assert (again.ids[:, 0] == 0).all()
    assert not (again.ids[:, 1:] == 1).any(), "the end-of-sequence token is suppressed"


def test_tokens_are_drawn_with_their_probabilities() -> None:
    from apt.evaluation.sampling import _draw

    p = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = _draw(p.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / 20_000
    assert shares[1] == shares[4] == 0
    assert shares == pytest.approx(p, abs=0.015)


def test_a_text_file_is_used_whole_and_a_spread_of_it_when_asked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    whole = load_rows(path, split="heldout", checkpoint=checkpoint, window=16)
    assert whole.n_bytes == len(TEXT.encode())
    some = load_rows(path, split="train", checkpoint=checkpoint, window=16, max_rows=3)
    assert len(some) == 3 and some.row_bytes is not None and some.n_bytes == sum(some.row_bytes)
    assert torch.equal(some.ids[1], whole.ids[len(whole) // 3])


def test_jsonl_documents_stay_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one two"}\n\n{"text": "你好"}\n', encoding="utf-8")
    rows = load_rows(path, split="heldout", checkpoint=checkpoint)
    assert len(rows) == 2 and rows.n_bytes == 7 + 6


def test_a_narrower_window_cuts_token_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, heldout=np.arange(40, dtype=np.int32).reshape(4, 10))
    rows = load_rows(path, split="heldout", checkpoint=checkpoint, window=6)
    assert rows.ids.shape == (4, 6) and rows.n_bytes is None and rows.tokens == 20
    assert len(load_rows(path, split="heldout", checkpoint=checkpoint, max_rows=2)) == 2


def test_rows_from_ids_do_not_alias_their_input() -> None:
    ids = torch.tensor([[0, 5, 6], [0, 7, 8]])
    rows = rows_from_ids(ids, source="x", lengths=[3, 2])
    ids[:] = 0
    assert rows.ids[0].tolist() == [0, 5, 6]
    assert rows.labels.tolist() == [[-100, 5, 6], [-100, 7, -100]]
    assert rows.take([1]).ids.tolist() == [[0, 7, 8]]


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("missing.txt", None, NotFoundError, "no such text"),
        ("missing.npz", None, NotFoundError, "no such text"),
        ("a.csv", b"x", UsageError, "unknown kind"),
        ("a.txt", b"\xff\xfe\x00", BadInputError, "not UTF-8"),
        ("empty.txt", b"", BadInputError, "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', BadInputError, "a.jsonl:2"),
        ("b.jsonl", b"not json\n", BadInputError, "b.jsonl:1"),
        ("a.npz", b"PK not a zip", BadInputError, "not an .npz"),
    ],
)
def test_bad_texts_are_told_in_one_line(
    checkpoint: Checkpoint, tmp_path: Path, name: str, content: bytes | None, error: type[Exception], words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        load_rows(path, split="heldout", checkpoint=checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl", "pipe.npz"])
def test_a_pipe_is_refused_and_not_waited_for(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    # A writer that says nothing and hangs up: what reads after all gets an empty file, and this test does not hang.
    writer = subprocess.Popen(["sh", "-c", ': > "$0"', str(tmp_path / name)])
    try:
        with pytest.raises(BadInputError, match="not a file"):
            load_rows(tmp_path / name, split="heldout", checkpoint=checkpoint)
    finally:
        writer.kill()
        writer.wait()


def test_a_directory_is_no_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(BadInputError, match="not a file"):
        load_rows(tmp_path / "a.txt", split="heldout", checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train": np.zeros((2, 4), int)}, "has no array 'heldout'"),
        ({"heldout": np.zeros(4, int)}, "not integer rows"),
        ({"heldout": np.zeros((2, 4))}, "not integer rows"),
        ({"heldout": np.zeros((2, 1), int)}, "not integer rows"),
        ({"heldout": np.zeros((2, 4), int), "heldout_bytes": np.zeros(3, int)}, "do not fit"),
        ({"heldout": np.array([[None, 1]])}, "not an .npz"),
    ],
)
def test_bad_token_rows_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(BadInputError, match=words):
        load_rows(path, split="heldout", checkpoint=checkpoint)


def test_a_window_of_one_token_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="nothing to count"):
        load_rows("embedded", split="heldout", checkpoint=checkpoint, window=1)
