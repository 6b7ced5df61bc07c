"""Texts as token rows: the one form in which pruning, distillation and measuring read text.

A row is a window of its own. Its first token is given and never counted: the beginning-of-sequence token where
the tokenizer has one, else the last token of the row before (a document's first token is then not counted).
Apart from that, every token of the text is counted exactly once.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from apt.console.errors import BadInputError, NotFoundError, UsageError
from apt.evaluation.sampling import sample_rows, start_token

if TYPE_CHECKING:
    import torch


class Reader(Protocol):
    """A model whose text is wanted in tokens: a checkpoint, or a GGUF."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config; only the context and the start token are read."""
        ...

    def tokenizer(self) -> Any:
        """Return its transformers tokenizer."""
        ...

    def load(self, dtype: "torch.dtype | None" = None, device: str = "cpu") -> Any:
        """Return the transformers model."""
        ...


Split = Literal["calibration", "train", "heldout"]
SPLITS: Final[tuple[Split, ...]] = ("calibration", "train", "heldout")

#: Window when none is asked for, in tokens, as far as the model's context reaches.
DEFAULT_WINDOW: Final = 512
#: The first token of a row is given; a row of one has nothing to count.
FEWEST_TOKENS: Final = 2
#: Rows that are sampled from a model when no number is asked for.
SAMPLED_ROWS: Final[Mapping[str, int]] = {"calibration": 64, "train": 256, "heldout": 64}
#: Of ten train modules of the standard library, one is calibration text and nothing else.
_CALIBRATION_EVERY: Final = 10
#: Rows of one document depend on one another. Documents are the units of intervals and tests from so many on; of fewer,
#: there is nothing to estimate their spread from.
FEWEST_DOCUMENTS: Final = 20
#: Not counted, in ``labels``.
IGNORED: Final = -100


@dataclass(frozen=True)
class Rows:
    """Token rows and what of them counts.

    :param ids: int64 ``[rows, window]``, padded on the right.
    :param labels: int64 ``[rows, window]``, unshifted; -100 where a token is not counted.
    :param n_bytes: UTF-8 bytes of the text that the counted tokens stand for; ``None`` where there is no text.
    :param source: where the rows come from, for people.
    :param row_bytes: the same bytes row by row.
    :param sampled: whether a model wrote the text; scores then tell agreement with that model, not quality.
    :param documents: the document that each row is of, where the text has several.
    """

    ids: "torch.Tensor"
    labels: "torch.Tensor"
    n_bytes: int | None
    source: str
    row_bytes: tuple[int, ...] | None = None
    sampled: bool = False
    documents: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def counted(self) -> "torch.Tensor":
        """Bool ``[rows, window - 1]``: whether the token *after* each position is counted."""
        return self.labels[:, 1:] != IGNORED

    @property
    def tokens(self) -> int:
        """Number of counted tokens."""
        return int(self.counted.sum())

    @property
    def lengths(self) -> "torch.Tensor":
        """Int64 ``[rows]``: tokens of each row, the first one included and the padding not."""
        return self.counted.sum(dim=1) + 1

    def take(self, rows: list[int]) -> "Rows":
        """Return some of the rows."""
        by_row = None if self.row_bytes is None else tuple(self.row_bytes[i] for i in rows)
        n_bytes = self.n_bytes if len(rows) == len(self) else None
        if by_row is not None:
            n_bytes = sum(by_row)
        documents = None if self.documents is None else tuple(self.documents[i] for i in rows)
        return Rows(self.ids[rows], self.labels[rows], n_bytes, self.source, by_row, self.sampled, documents)

    @property
    def clusters(self) -> tuple[int, ...] | None:
        """The documents as units of intervals and tests; ``None`` where too few of them leave only the rows."""
        enough = self.documents is not None and len(set(self.documents)) >= FEWEST_DOCUMENTS
        return self.documents if enough else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is scored; two scores with one digest are of the same tokens in the same rows."""
        found = hashlib.sha256(str(tuple(self.ids.shape)).encode())
        for tensor in (self.ids, self.labels):
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def spread(self, max_rows: int | None) -> "Rows":
        """Return at most ``max_rows`` rows, evenly spread over the text."""
        n = len(self)
        if max_rows is None or n <= max_rows:
            return self
        return self.take([i * n // max_rows for i in range(max_rows)])


def rows_from_ids(ids: Any, *, source: str, lengths: Any = None, row_bytes: Any = None, sampled: bool = False) -> Rows:
    """Make rows of an integer array ``[rows, window]`` whose rows begin with their given token.

    :param lengths: tokens of each row without its padding; the whole width when absent.
    """
    import torch

    tensor = torch.as_tensor(ids).long().clone()
    labels = tensor.clone()
    labels[:, 0] = IGNORED
    if lengths is not None:
        padding = torch.arange(tensor.shape[1])[None] >= torch.as_tensor(lengths).long()[:, None]
        labels[padding] = IGNORED
    by_row = None if row_bytes is None else tuple(int(n) for n in row_bytes)
    return Rows(tensor, labels, None if by_row is None else sum(by_row), source, by_row, sampled)


def save_rows(splits: Mapping[Split, Rows], path: Path, *, overwrite: bool = False) -> None:
    """Write splits to one ``.npz``, atomically.

    For each split: an int32 array of that name, ``<split>_lengths`` where rows are padded, ``<split>_bytes`` where
    the bytes are known, ``<split>_sampled`` where a model wrote the text. The same rows give the same file, byte for
    byte.
    """
    import numpy as np

    from apt.checkpoint.atomic import atomic_file

    arrays: dict[str, Any] = {}
    for split, rows in splits.items():
        arrays[split] = rows.ids.numpy().astype(np.int32)
        lengths = rows.lengths.numpy()
        if (lengths != rows.ids.shape[1]).any():
            arrays[f"{split}_lengths"] = lengths
        if rows.row_bytes is not None:
            arrays[f"{split}_bytes"] = np.asarray(rows.row_bytes, np.int64)
        if rows.sampled:
            arrays[f"{split}_sampled"] = np.asarray(True)
    with atomic_file(path, overwrite=overwrite) as stream:
        np.savez(stream, **arrays)


def load_rows(
    ref: str | Path,
    *,
    split: Split,
    checkpoint: Reader,
    window: int | None = None,
    max_rows: int | None = None,
    model: Any = None,
) -> Rows:
    """Return the rows of a text for one model.

    :param ref: ``embedded`` (the frozen held-out text; modules of the standard library), ``self`` (sampled from
        the model, other rows for every split), or a file: ``.txt`` and ``.jsonl`` (key ``text``) are used whole
        whatever the split, ``.npz`` holds an array of token rows named by the split.
    :param window: tokens a row; the model's context, at most 512, when absent.
    :param max_rows: at most so many rows, spread over the text.
    :param model: the loaded model, if the caller has it (``self`` needs it).
    :raises NotFoundError: when the file does not exist; :raises BadInputError: when it is broken or empty.
    """
    if window is not None and window < FEWEST_TOKENS:
        raise UsageError(f"a window of {window} tokens has nothing to count", hint="at least 2")
    if str(ref) == "self":
        return _sampled(checkpoint, split, window, max_rows, model)
    if str(ref) != "embedded" and Path(ref).suffix == ".npz":
        return _token_rows(Path(ref), split, window).spread(max_rows)
    size = window or window_of(checkpoint)
    if str(ref) == "embedded" and split != "heldout":
        return _embedded(checkpoint, split, size, max_rows)
    source = f"embedded {split}" if str(ref) == "embedded" else str(ref)
    documents = [heldout_text()] if str(ref) == "embedded" else read_documents(Path(ref))
    return cut_documents(checkpoint.tokenizer(), documents, size, source).spread(max_rows)


def window_of(checkpoint: Reader) -> int:
    """Return the tokens of a row when nobody chose: the model's context, at most 512.

    :raises BadInputError: when the stated context leaves nothing to count.
    """
    size = min(context_of(checkpoint), DEFAULT_WINDOW)
    if size < FEWEST_TOKENS:
        raise BadInputError(
            f"{checkpoint.name}: config.json states a context of {size} tokens, in which nothing can be counted",
            hint="mend config.json, or choose the tokens of a row: --window N",
        )
    return size


def context_of(checkpoint: Reader) -> int:
    """Return the context length that the config states, 512 when it states none."""
    return stated_context(checkpoint.config) or DEFAULT_WINDOW


def shared_context(configs: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the shortest context that models state which read the same rows, ``None`` when none states one."""
    return min((size for size in map(stated_context, configs) if size is not None), default=None)


def stated_context(config: Mapping[str, Any]) -> int | None:
    """Return the context length that a ``config.json`` states under one of its names, ``None`` when it states none."""
    for part in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def heldout_text() -> str:
    """Return the frozen held-out text that ships with ``tiny``."""
    import apt.assets

    path = Path(apt.assets.__file__).parent / "tiny" / "heldout.txt"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"the embedded held-out text is missing: {path}", hint="install the package anew") from None


def library_texts(split: Split) -> Iterator[str]:
    """Yield modules of the running interpreter's standard library.

    The split is by the text's own digest: the library holds some files twice, and the splits shall share none.
    """
    from apt.assets.corpus import stdlib_texts

    for _, text in stdlib_texts("train"):
        first = hashlib.sha256(text.encode("utf-8")).digest()[0]
        if (first % _CALIBRATION_EVERY == 0) == (split == "calibration"):
            yield text


def read_documents(path: Path) -> list[str]:
    """Return the texts of a ``.txt`` (one) or ``.jsonl`` file (one a line, key ``text``).

    :raises BadInputError: with the line that is not right.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"{path}: unknown kind of text", hint="embedded, self, or a .txt, .jsonl or .npz file")
    _refuse_special(path)
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"no such text: {path}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 at byte {error.start}") from None
    texts = [content] if path.suffix == ".txt" else [_line_text(path, n, s) for n, s in enumerate(content.split("\n"))]
    found = [text for text in texts if text]
    if not found:
        raise BadInputError(f"{path}: holds no text")
    return found


def _refuse_special(path: Path) -> None:
    """Refuse a directory, and a pipe, which would be waited for without an end and could be read only once.

    :raises BadInputError: naming it.
    """
    if path.exists() and not path.is_file():
        raise BadInputError(f"{path}: not a file", hint="texts are read more than once: write it to a file")


def _line_text(path: Path, number: int, line: str) -> str:
    if not line.strip():
        return ""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise BadInputError(f'{path}:{number + 1}: expected a JSON object with a string "text"')
    return text


def cut_documents(tokenizer: Any, documents: Iterable[str], window: int, source: str) -> Rows:
    """Cut every document in rows of its own.

    :param tokenizer: a transformers tokenizer.
    :raises BadInputError: when no document has a token to count.
    """
    cuts = [_cut(tokenizer, text, window) for text in documents]
    rows = _pad([row for cut in cuts for row in cut], tokenizer, source)
    several = tuple(i for i, cut in enumerate(cuts) for _ in cut) if len(cuts) > 1 else None
    return dataclasses.replace(rows, documents=several)


def _pad(rows: list[tuple[list[int], int]], tokenizer: Any, source: str) -> Rows:
    if not rows:
        raise BadInputError(f"the text {source!r} is too short: it has no token to count")
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else rows[0][0][0]
    padded = [ids + [pad] * (width - len(ids)) for ids, _ in rows]
    return rows_from_ids(padded, source=source, lengths=[len(ids) for ids, _ in rows], row_bytes=[n for _, n in rows])


def _cut(tokenizer: Any, text: str, window: int) -> list[tuple[list[int], int]]:
    """Return ``(ids, bytes of the counted tokens)`` for each row of one document.

    Bytes are told apart at the first character of a row's first counted token, so that they add up to the text
    even where a character is spread over tokens or the tokenizer leaves white space out.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    ids: list[int] = list(encoded["input_ids"])
    bos = tokenizer.bos_token_id
    starts = list(range(0 if bos is not None else 1, len(ids), window - 1))
    if tokenizer.is_fast:
        characters = [encoded["offset_mapping"][s][0] if s else 0 for s in starts] + [len(text)]
    else:  # no offsets: by the share of the tokens
        characters = [s * len(text) // len(ids) for s in starts] + [len(text)]
    rows = []
    for k, start in enumerate(starts):
        given = bos if bos is not None else ids[start - 1]
        n_bytes = len(text[characters[k] : characters[k + 1]].encode("utf-8", "surrogatepass"))
        rows.append(([given, *ids[start : start + window - 1]], n_bytes))
    return rows


def _embedded(checkpoint: Reader, split: Split, window: int, max_rows: int | None) -> Rows:
    """Rows of library modules; with ``max_rows``, at least 32 modules have a share in them."""
    tokenizer = checkpoint.tokenizer()
    rows: list[tuple[list[int], int]] = []
    share = None if max_rows is None else max(1, max_rows // 32)
    for text in library_texts(split):
        cut = _cut(tokenizer, text, window)
        if share is not None and len(cut) > share:
            cut = [cut[i * len(cut) // share] for i in range(share)]
        rows += cut
        if max_rows is not None and len(rows) >= max_rows:
            break
    return _pad(rows[:max_rows], tokenizer, f"embedded {split}")


def _token_rows(path: Path, split: Split, window: int | None) -> Rows:
    """Read one split of an ``.npz`` of token rows; ``window`` cuts longer rows."""
    import numpy as np

    _refuse_special(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name.startswith(split)}
            known = archive.files
    except FileNotFoundError:
        raise NotFoundError(f"no such text: {path}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise BadInputError(f"{path}: not an .npz of token rows: {error}") from None
    if split not in arrays:
        raise BadInputError(f"{path}: has no array {split!r}", hint=f"it has {', '.join(known) or 'none'}")
    ids = arrays[split]
    if ids.ndim != 2 or ids.shape[1] < 2 or not len(ids) or ids.dtype.kind not in "iu":
        raise BadInputError(f"{path}: {split!r} is {ids.dtype}{list(ids.shape)}, not integer rows [rows, window]")
    lengths, n_bytes = arrays.get(f"{split}_lengths"), arrays.get(f"{split}_bytes")
    for extra in (lengths, n_bytes):
        if extra is not None and extra.shape != (len(ids),):
            raise BadInputError(f"{path}: lengths or bytes of {split!r} do not fit its {len(ids)} rows")
    if window is not None and window < ids.shape[1]:
        ids, n_bytes = ids[:, :window], None
        lengths = None if lengths is None else np.minimum(lengths, window)
    source, sampled = f"{path}:{split}", f"{split}_sampled" in arrays
    return rows_from_ids(ids.astype(np.int64), source=source, lengths=lengths, row_bytes=n_bytes, sampled=sampled)


def _sampled(checkpoint: Reader, split: Split, window: int | None, max_rows: int | None, model: Any) -> Rows:
    import torch

    model = model or checkpoint.load(dtype=torch.float32)
    size = window or window_of(checkpoint)
    count = SAMPLED_ROWS[split] if max_rows is None else max_rows
    ids = sample_rows(model, rows=count, window=size, seed=SPLITS.index(split), bos=start_token(checkpoint.config))
    return rows_from_ids(ids, source=f"sampled from {checkpoint.name}", sampled=True)
