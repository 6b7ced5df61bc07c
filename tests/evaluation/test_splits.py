"""Holding out a part of a text."""

import dataclasses
from pathlib import Path

import pytest
import torch

from apt.console.errors import BadInputError
from apt.evaluation.splits import has_split, hold_out
from apt.evaluation.texts import Rows, rows_from_ids, save_rows


def rows(count: int, documents: tuple[int, ...] | None = None) -> Rows:
    made = rows_from_ids(torch.arange(count * 4).view(count, 4), source="test")
    return dataclasses.replace(made, documents=documents)


def test_the_last_tenth_is_held_out_and_nothing_is_in_both() -> None:
    fitted, held = hold_out(rows(40), 64)
    assert (len(fitted), len(held)) == (36, 4)
    assert not set(fitted.ids[:, 0].tolist()) & set(held.ids[:, 0].tolist())
    assert len(hold_out(rows(40), 2)[1]) == 2


def test_documents_stay_whole_where_one_begins_nearby() -> None:
    fitted, held = hold_out(rows(40, tuple(n // 6 for n in range(40))), 64)
    assert not set(fitted.documents or ()) & set(held.documents or ())
    assert len(fitted) == 36 and len(hold_out(rows(40, (0,) * 3 + (1,) * 37), 64)[0]) == 36


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(BadInputError, match="2 rows: too few"):
        hold_out(rows(2), 64)


def test_which_texts_have_a_split_of_their_own(tmp_path: Path) -> None:
    save_rows({"calibration": rows(3)}, tmp_path / "one.npz")
    save_rows({"calibration": rows(3), "heldout": rows(3)}, tmp_path / "two.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    names = ("one.npz", "two.npz", "broken.npz", "missing.npz", "text.txt")
    assert [has_split(str(tmp_path / n), "heldout") for n in names] == [False, True, False, False, False]
    assert has_split("embedded", "heldout") and has_split("self", "heldout")
