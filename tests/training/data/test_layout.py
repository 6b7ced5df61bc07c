"""Streams of documents as packed rows: the rows of the documents cut by hand, and no token copied again and again."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from apt.training.data.encoding import Encoded
from apt.training.data.layout import PackedRows, StreamedRows, packed

WINDOW = 8


class Tokens(list[int]):
    """Counts the tokens that are copied out of it."""

    copied = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if isinstance(place, slice):
            Tokens.copied += len(found)
        return found


class Documents:
    def __init__(self, lengths: Sequence[int]) -> None:
        ids = itertools.count()
        self.all = [Tokens(itertools.islice(ids, n)) for n in lengths]

    def after(self, documents: int) -> Iterator[Encoded]:
        for ids in self.all[documents:]:
            yield Encoded(ids, Tokens([-100, *(i * 10 for i in ids[1:])] if ids else []))

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> Encoded:
        return next(self.after(index))

    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.all]

    def meta(self, index: int) -> dict[str, Any]:
        return {}

    def digest(self) -> str:
        return "counted"


def by_hand(documents: Documents) -> list[Any]:
    """One pass: documents behind one another, cut at every window; a piece begins where a document or a row does."""
    placed = [(i, n, document) for n, document in enumerate(documents.after(0)) for i in range(len(document.ids))]
    found = []
    for begin in range(0, len(placed) - WINDOW + 1, WINDOW):
        pieces = []
        for _, group in itertools.groupby(placed[begin : begin + WINDOW], key=lambda place: place[1]):
            part = list(group)
            cut = slice(part[0][0], part[-1][0] + 1)
            pieces.append(Encoded(part[0][2].ids[cut], part[0][2].labels[cut]))
        found.append(packed(pieces))
    return found


def plain(row: Any) -> dict[str, list[int]]:
    return {name: tensor.tolist() for name, tensor in row.items()}


@pytest.mark.parametrize("lengths", [[3, 40, 0, 1, 8, 16, 7, 9], [100], [8, 8], [5, 0, 30, 2]])
def test_packed_rows_of_a_stream_are_those_cut_by_hand(lengths: list[int]) -> None:
    documents = Documents(lengths)
    wanted = [plain(row) for row in by_hand(documents)]
    numbered = PackedRows(documents, WINDOW)
    assert [plain(numbered[i]) for i in range(len(numbered))] == wanted
    stream = StreamedRows(documents, WINDOW, "packed", "cut")
    given = [plain(row) for row in itertools.islice(stream, 2 * len(wanted))]
    assert wanted and given == wanted * 2


def test_what_is_left_of_a_document_is_the_state() -> None:
    documents = Documents([3, 40])
    stream = StreamedRows(documents, WINDOW, "packed", "cut")
    rows = iter(stream)
    next(rows), next(rows)
    left = list(range(16, 43))
    assert stream.state_dict() == {"read": 2, "left": {"ids": left, "labels": [i * 10 for i in left]}}
    again = StreamedRows(documents, WINDOW, "packed", "cut")
    again.load_state_dict(stream.state_dict())
    assert [plain(r) for r in itertools.islice(again, 6)] == [plain(r) for r in itertools.islice(rows, 6)]
    assert again.state_dict() == stream.state_dict()


def test_every_token_of_a_long_document_is_copied_once() -> None:
    documents = Documents([WINDOW * 500])
    stream = StreamedRows(documents, WINDOW, "packed", "cut")
    Tokens.copied = 0
    assert len(list(itertools.islice(stream, 500))) == 500
    # Ids and labels, once each; beside them the labels are made of the ids, and of each piece but its first token.
    assert Tokens.copied <= 3 * WINDOW * 500
