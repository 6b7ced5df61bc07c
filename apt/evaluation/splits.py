"""Holding out a part of a text, so that nothing is measured on what was fitted or trained on."""

import zipfile
from pathlib import Path
from typing import Final

from apt.console.errors import BadInputError
from apt.evaluation.texts import Rows, Split

#: Of a text without a held-out text beside it, this share of the rows is measured on.
HELDOUT_SHARE: Final = 0.1
#: Rows that must be left to fit or train on.
_FEWEST: Final = 2


def hold_out(whole: Rows, rows: int) -> tuple[Rows, Rows]:
    """Cut the last tenth of a text off, at the beginning of a document where one is near.

    :param rows: of the last tenth at most so many are returned, spread over it.
    :returns: the rows before, all of them, and the held-out ones.
    :raises BadInputError: when there are too few rows.
    """
    n = len(whole)
    cut = n - max(1, int(n * HELDOUT_SHARE))
    if whole.documents is not None:
        begins = [i for i in range(max(_FEWEST, n // 2), cut + 1) if whole.documents[i] != whole.documents[i - 1]]
        cut = begins[-1] if begins else cut
    if cut < _FEWEST:
        raise BadInputError(f"the text {whole.source!r} has {n} rows: too few to fit and measure on")
    return whole.take(list(range(cut))), whole.take(list(range(cut, n))).spread(rows)


def has_split(ref: str, split: Split) -> bool:
    """Whether a text has rows of its own for a split: the built-in ones do, and an ``.npz`` with that array."""
    if ref in ("embedded", "self"):
        return True
    if Path(ref).suffix != ".npz":
        return False
    try:
        with zipfile.ZipFile(ref) as archive:
            return f"{split}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # whoever reads it says what is wrong with it
