"""From documents to rows: one document a row, or documents behind one another.

Packed documents bring ``position_ids`` that begin anew at each, by which transformers keeps attention within a
document. A document's first token, and the first one of a piece that goes on in the next row, is given and not counted.
"""

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, Protocol

import torch

from apt.console.errors import BadInputError
from apt.training.contract import IGNORED, Row
from apt.training.data.encoding import Encoded

Layout = Literal["packed", "padded"]
TooLong = Literal["cut", "skip", "refuse"]

#: Shorter pieces have nothing to count.
_SHORTEST: Final = 2


class Documents(Protocol):
    """Documents by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded: ...

    def lengths(self) -> Sequence[int]:
        """Return the tokens of each."""
        ...

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return what is known of a document beside its tokens."""
        ...

    def digest(self) -> str:
        """Return a sha256 of what they are made of."""
        ...


class PaddedRows:
    """One document a row."""

    def __init__(self, documents: Documents, window: int, too_long: TooLong) -> None:
        self._documents = documents
        self.window = window
        lengths = documents.lengths()
        longest = max(lengths, default=0)
        if too_long == "refuse" and longest > window:
            where = lengths.index(longest)
            _refuse(where + 1, longest, window)
        most = window if too_long == "skip" else longest
        self._numbers = [i for i, n in enumerate(lengths) if _SHORTEST <= n <= most]
        self._lengths = [min(lengths[i], window) for i in self._numbers]
        if not self._numbers:
            raise BadInputError(f"no document has from {_SHORTEST} to {window} tokens")

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Row:
        """Return a document, cut to the window."""
        found = self._documents[self._numbers[index]]
        return {
            "input_ids": torch.tensor(found.ids[: self.window]),
            "labels": torch.tensor(found.labels[: self.window]),
        }

    def length(self, index: int) -> int:
        """Return a row's number of tokens."""
        return self._lengths[index]

    def part(self, index: int) -> str:
        """Return ``""``: documents of one source are of one part."""
        return ""

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return what is known of the document."""
        return self._documents.meta(self._numbers[index])

    def digest(self) -> str:
        """Return a sha256 of the documents and the layout."""
        return _hashed(f"{self._documents.digest()} padded {self.window} {len(self)}")


class PackedRows:
    """Documents behind one another, cut into windows; the last window is left out unless it is the only one."""

    def __init__(self, documents: Documents, window: int) -> None:
        self._documents = documents
        self.window = window
        self._ends = list(itertools.accumulate(documents.lengths()))
        total = self._ends[-1] if self._ends else 0
        if total < _SHORTEST:
            raise BadInputError("the documents have no token to count")
        self._count = max(1, total // window)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        """Return a window of the documents."""
        begin = index * self.window
        number = bisect.bisect_right(self._ends, begin)
        pieces, taken = [], 0
        while taken < self.window and number < len(self._ends):
            document = self._documents[number]
            start = begin + taken - (self._ends[number - 1] if number else 0)
            piece = slice(start, start + self.window - taken)
            pieces.append(Encoded(document.ids[piece], document.labels[piece]))
            taken += len(pieces[-1].ids)
            number += 1
        return packed(pieces)

    def length(self, index: int) -> int:
        """Return a row's number of tokens."""
        return min(self.window, self._ends[-1] - index * self.window)

    def part(self, index: int) -> str:
        """Return ``""``: documents of one source are of one part."""
        return ""

    def meta(self, index: int) -> Mapping[str, Any]:
        """Return nothing: a row has pieces of several documents."""
        return {}

    def digest(self) -> str:
        """Return a sha256 of the documents and the layout."""
        return _hashed(f"{self._documents.digest()} packed {self.window}")


def _refuse(number: int, tokens: int, window: int) -> NoReturn:
    raise BadInputError(f"document {number} has {tokens} tokens, the window is {window}", hint="or too_long: cut")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def packed(pieces: Sequence[Encoded]) -> Row:
    """Return pieces of documents as one row; a document without tokens leaves nothing."""
    pieces = [piece for piece in pieces if piece.ids]
    ids = [token for piece in pieces for token in piece.ids]
    labels = [label for piece in pieces for label in [IGNORED, *piece.labels[1:]]]
    positions = [position for piece in pieces for position in range(len(piece.ids))]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "position_ids": torch.tensor(positions)}


class DocumentStream(Protocol):
    """Documents one after another; what a stream of rows is made of."""

    def after(self, documents: int) -> Iterator[Encoded]:
        """Yield the documents behind so many, to the end."""
        ...

    def digest(self) -> str:
        """Return a sha256 of what is streamed."""
        ...


class StreamedRows:
    """Rows of a stream of documents; begins anew at its end.

    The state is the number of documents that were read and what is left of the last one.
    """

    def __init__(self, documents: DocumentStream, window: int, layout: Layout, too_long: TooLong) -> None:
        self._documents = documents
        self.window = window
        self._layout = layout
        self._too_long = too_long
        self._read = 0
        self._left = Encoded([], [])
        self._given = 0  # tokens of what is left that rows were made of since

    def __iter__(self) -> Iterator[Row]:
        """Yield rows without end.

        :raises BadInputError: when a whole pass gives none.
        """
        while True:
            begun, given = self._read, 0
            for row in self._pass():
                given += 1
                yield row
            if not given and not begun:
                raise BadInputError("the stream has no document with a token to count")
            self._read = 0

    def _pass(self) -> Iterator[Row]:
        """Rows of the documents from the state to the end."""
        documents = self._documents.after(self._read)
        yield from self._packed(documents) if self._layout == "packed" else self._padded(documents)

    def _padded(self, documents: Iterator[Encoded]) -> Iterator[Row]:
        for document in documents:
            self._read += 1
            if len(document.ids) > self.window and self._too_long == "refuse":
                _refuse(self._read, len(document.ids), self.window)
            skipped = len(document.ids) > self.window and self._too_long == "skip"
            if len(document.ids) >= _SHORTEST and not skipped:
                yield {
                    "input_ids": torch.tensor(document.ids[: self.window]),
                    "labels": torch.tensor(document.labels[: self.window]),
                }

    def _packed(self, documents: Iterator[Encoded]) -> Iterator[Row]:
        pieces: list[Encoded] = []
        room = self.window
        fresh = self._read == 0
        while True:
            if self._given == len(self._left.ids):
                document = next(documents, None)
                if document is None:
                    # A row that is not full is left out, as the last window of files is, unless it is the only one.
                    if fresh and sum(len(piece.ids) for piece in pieces) >= _SHORTEST:
                        yield packed(pieces)
                    return
                self._read += 1
                self._left, self._given = document, 0
            cut = slice(self._given, self._given + room)
            piece = Encoded(self._left.ids[cut], self._left.labels[cut])
            self._given += len(piece.ids)
            pieces.append(piece)
            room -= len(piece.ids)
            if not room:
                fresh = False
                yield packed(pieces)
                pieces, room = [], self.window

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands."""
        left = {"ids": self._left.ids[self._given :], "labels": self._left.labels[self._given :]}
        return {"read": self._read, "left": left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._read = int(state["read"])
        self._left, self._given = Encoded(list(state["left"]["ids"]), list(state["left"]["labels"])), 0

    def digest(self) -> str:
        """Return a sha256 of the documents and the layout."""
        return _hashed(f"{self._documents.digest()} {self._layout} {self.window}")
