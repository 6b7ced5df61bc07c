"""Writing token rows of all splits to one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, TargetExistsError, UsageError
from apt.evaluation.results import TextResult
from apt.evaluation.sampling import sample_rows, start_token
from apt.evaluation.texts import (
    SPLITS,
    Rows,
    Split,
    context_of,
    cut_documents,
    load_rows,
    read_documents,
    rows_from_ids,
    save_rows,
    window_of,
)

#: Window of sampled rows: sampling costs a forward pass a token.
SAMPLED_WINDOW: Final = 256
#: Seeds of sampled files begin here; below lie those of the text reference ``self``.
_FIRST_SEED: Final = 1000
#: Where a file's train and calibration parts end; the rest is held out.
_CUTS: Final = (0.8, 0.9)
_TRIES: Final = 5


def rows_file(output: Path, *, overwrite: bool) -> Path:
    """Return the ``.npz`` to write for an output path, refusing an existing one before any work is done."""
    path = output if output.suffix == ".npz" else output / "rows.npz"
    if path.exists() and not overwrite:
        raise TargetExistsError(f"{path} exists already", hint="choose another output or give --overwrite")
    return path


def write_sampled(
    model: str, output: Path, *, rows: Mapping[Split, int], window: int | None, seed: int, overwrite: bool
) -> TextResult:
    """Sample rows from a model at temperature 1, all different, and deal them to the splits.

    :raises BadInputError: when the model repeats itself so much that there are not enough different rows.
    """
    import torch

    path = rows_file(output, overwrite=overwrite)
    checkpoint = Checkpoint.open(model)
    size = window or min(context_of(checkpoint), SAMPLED_WINDOW)
    if size > context_of(checkpoint):
        raise UsageError(f"a window of {size} tokens is longer than the context of {checkpoint.name}")
    loaded = checkpoint.load(dtype=torch.float32)
    ids = _different_rows(loaded, sum(rows.values()), size, _FIRST_SEED + seed, start_token(checkpoint.config))
    splits: dict[Split, Rows] = {}
    begin = 0
    # The held-out rows come first, so that they do not change when more are asked for training.
    for split in ("heldout", "calibration", "train"):
        end = begin + rows[split]
        splits[split] = rows_from_ids(ids[begin:end], source=f"sampled from {checkpoint.name}", sampled=True)
        begin = end
    return _write(splits, path, overwrite)


def _different_rows(model: Any, count: int, window: int, seed: int, bos: int) -> Any:
    import torch

    found: dict[tuple[int, ...], None] = {}
    for attempt in range(_TRIES):
        missing = count - len(found)
        if not missing:
            break
        sampled = sample_rows(model, rows=missing, window=window, seed=seed * _TRIES + attempt, bos=bos)
        found.update(dict.fromkeys(tuple(row) for row in sampled.tolist()))
    if len(found) < count:
        raise BadInputError(
            f"the model writes only {len(found)} different rows of {window} tokens, {count} are asked for",
            hint="it repeats itself; give a text of your own",
        )
    return torch.tensor(list(found))


def write_texts(
    model: str,
    output: Path,
    *,
    text: str,
    rows: Mapping[Split, int | None],
    window: int | None,
    overwrite: bool,
) -> TextResult:
    """Cut a text in rows of disjoint splits.

    :raises BadInputError: when the text is too short for three splits.
    """
    path = rows_file(output, overwrite=overwrite)
    checkpoint = Checkpoint.open(model)
    if text == "self":
        raise UsageError("rows of 'self' are sampled", hint="use the operation sample-text")
    if text == "embedded" or Path(text).suffix == ".npz":
        splits = {s: load_rows(text, split=s, checkpoint=checkpoint, window=window, max_rows=rows[s]) for s in SPLITS}
    else:
        size = window or window_of(checkpoint)
        tokenizer = checkpoint.tokenizer()
        parts = split_documents(read_documents(Path(text)))
        splits = {s: cut_documents(tokenizer, parts[s], size, f"{text} ({s})").spread(rows[s]) for s in SPLITS}
    return _write(splits, path, overwrite)


def split_documents(documents: Sequence[str]) -> dict[Split, list[str]]:
    """Deal a file's documents to the splits, in their order; a lone document is cut at line ends.

    :raises BadInputError: when there is not enough for three splits.
    """
    units = list(documents) if len(documents) >= 10 else "".join(documents).splitlines(keepends=True)
    sizes = [len(u) for u in units]
    ends = [_index_at(sizes, cut) for cut in _CUTS]
    parts = [units[: ends[0]], units[ends[0] : ends[1]], units[ends[1] :]]
    if not all("".join(part).strip() for part in parts):
        raise BadInputError("the text is too short to be cut into train, calibration and held-out parts")
    if len(documents) < 10:
        parts = [["".join(part)] for part in parts]
    return {"train": parts[0], "calibration": parts[1], "heldout": parts[2]}


def _index_at(sizes: Sequence[int], share: float) -> int:
    """Return the index of the first unit that begins at or after a share of the whole."""
    wanted, begun = share * sum(sizes), 0
    for i, size in enumerate(sizes):
        if begun >= wanted:
            return i
        begun += size
    return len(sizes)


def _write(splits: Mapping[Split, Rows], path: Path, overwrite: bool) -> TextResult:
    save_rows(splits, path, overwrite=overwrite)
    heldout = splits["heldout"]
    return TextResult(
        path=path,
        source=heldout.source,
        kind="agreement" if heldout.sampled else "quality",
        window=heldout.ids.shape[1],
        calibration_rows=len(splits["calibration"]),
        train_rows=len(splits["train"]),
        heldout_rows=len(heldout),
        heldout_tokens=heldout.tokens,
        heldout_bytes=heldout.n_bytes,
    )
