"""Writing down what a teacher says of a text, once.

Rows go through the teacher in their order; the records of some thousand tokens make a shard, which is written aside and
renamed. A capture that was interrupted goes on with the first shard that is not there and ends with the same bytes.
"""

import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apt.checkpoint.atomic import atomic_file
from apt.checkpoint.reader import file_digest
from apt.console.errors import BadInputError, UsageError
from apt.console.progress import progress
from apt.console.table import Table
from apt.training.contract import Row, RowSource
from apt.training.data.rows import batch_of, on_device
from apt.training.forward import evaluating, last_hidden
from apt.training.losses.head import Head
from apt.training.teachers.contract import DenseTargets
from apt.training.teachers.manifest import (
    FORMAT,
    MANIFEST_NAME,
    PLAN_NAME,
    ROWS_NAME,
    Kind,
    Manifest,
    Plan,
    Quality,
    Shard,
    row_table,
)
from apt.training.teachers.packing import FLOOR, Encoding, Format
from apt.training.teachers.sparse import draw, log_probabilities

#: Tokens of a shard, about; what an interruption costs at most.
SHARD_TOKENS: Final = 16_384


class CaptureOptions(BaseModel):
    """How a teacher's logits are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(default="top_k", description="The k likeliest ids, or k unbiased draws.")
    k: int = Field(default=128, ge=1, le=4096, description="Ids or draws a token.")
    encoding: Encoding = Field(default="packed", description="packed in few bytes, or plain int32 and float16.")
    batch_rows: int = Field(default=8, ge=1, description="Rows that go through the teacher at a time.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the draws.")


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """A cache that was captured.

    :param mass: mean probability of the kept ids.
    :param kl_nats: mean KL divergence that the encoding costs, nats a token.
    :param mean_log_prob: mean error of a log-probability, nats; ``worst_log_prob`` is the largest.
    """

    path: Path
    kind: str
    k: int
    encoding: str
    rows: int
    tokens: int
    size_bytes: int
    bytes_per_token: float
    mass: float
    kl_nats: float
    mean_log_prob: float
    worst_log_prob: float
    seconds: float

    def tables(self) -> list[Table]:
        """Return the facts."""
        rows = [
            ["cache", str(self.path)],
            ["kept", f"{self.kind}, k = {self.k}, {self.encoding}"],
            ["tokens", f"{self.tokens:,} in {self.rows:,} rows"],
            ["bytes a token", f"{self.bytes_per_token:.1f}"],
            ["probability kept", f"{self.mass:.4f}"],
            ["KL of the encoding", f"{self.kl_nats:.1e} nats a token"],
            ["error of a log-probability", f"{self.mean_log_prob:.4f} nats, at most {self.worst_log_prob:.4f}"],
        ]
        return [Table("", ["logit cache", ""], rows)]


def capture(
    model: Any,
    source: RowSource,
    directory: Path,
    options: CaptureOptions,
    *,
    teacher: str = "",
    tokenizer: str = "",
    shared_vocab: int | None = None,
) -> CaptureResult:
    """Write what ``model`` says of the counted tokens of ``source``.

    :param teacher: the digest of the model's checkpoint; :param tokenizer: its fingerprint.
    :param shared_vocab: only ids below it are kept, their probabilities renormalised; the whole vocabulary when absent.
    :raises UsageError: when the directory holds another cache.
    :raises CannotWriteError: when the disk is full; the same call goes on later.
    """
    begun = time.monotonic()
    vocabulary = min(int(Head.of(model).weight.shape[0]), shared_vocab or 2**31)
    table = row_table(_readable(source, int(model.get_input_embeddings().weight.shape[0])))
    if not table[-1, 0]:
        raise BadInputError("no token of the rows is to be trained on: there is nothing to capture")
    plan = Plan(
        format=FORMAT, kind=options.kind, k=_entries(options, vocabulary), encoding=options.encoding, seed=options.seed,
        vocabulary=vocabulary, rows=len(source), tokens=int(table[-1, 0]), teacher=teacher, tokenizer=tokenizer,
        rows_digest=source.digest(),
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, plan)
    if not (directory / MANIFEST_NAME).exists():
        with evaluating(model):
            _write(model, source, directory, plan, options, table)
    manifest = Manifest.read(directory)
    size = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
    return CaptureResult(
        path=directory, kind=plan.kind, k=plan.k, encoding=plan.encoding, rows=plan.rows, tokens=plan.tokens,
        size_bytes=size, bytes_per_token=size / plan.tokens, seconds=time.monotonic() - begun,
        **manifest.quality.model_dump(),
    )  # fmt: skip


def is_captured(directory: Path) -> bool:
    """Whether a directory holds a whole cache."""
    return (directory / MANIFEST_NAME).is_file()


def _entries(options: CaptureOptions, vocabulary: int) -> int:
    """Draws may exceed the vocabulary, ids cannot."""
    return options.k if options.kind == "sampled" else min(options.k, vocabulary)


def _readable(source: RowSource, vocabulary: int) -> Iterator[Row]:
    """The rows, as far as the teacher knows their ids.

    :raises BadInputError: for ids beyond its vocabulary.
    """
    for number in range(len(source)):
        row = source[number]
        low, high = int(row["input_ids"].min()), int(row["input_ids"].max())
        if low < 0 or high >= vocabulary:
            raise BadInputError(
                f"row {number} holds token ids from {low} to {high}; the teacher's vocabulary ends at {vocabulary - 1}",
                hint="the rows were made with another tokenizer",
            )
        yield row


def _claim(directory: Path, plan: Plan) -> None:
    """Write down what the directory is captured from, or refuse one of another capture."""
    path = directory / PLAN_NAME
    try:
        held = Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        names = [path.name for path in directory.iterdir()]
        # What a capture that was killed while it wrote the plan left is no other file.
        if any(not name.startswith(f".{PLAN_NAME}.") for name in names):
            raise UsageError(f"{directory} holds other files", hint="choose an empty directory") from None
        _write_json(path, plan)
        return
    except ValidationError:
        raise UsageError(f"{path}: not what a capture wrote", hint="choose another directory") from None
    changed = [name for name in Plan.model_fields if getattr(held, name) != getattr(plan, name)]
    if changed:
        raise UsageError(
            f"{directory} holds a cache of another capture: {', '.join(changed)}", hint="choose another directory"
        )


def _write_json(path: Path, model: BaseModel) -> None:
    with atomic_file(path, overwrite=True) as stream:
        stream.write(model.model_dump_json(indent=2).encode())


def _write(
    model: Any, source: RowSource, directory: Path, plan: Plan, options: CaptureOptions, table: NDArray[np.int64]
) -> None:
    offsets = table[:, 0]
    groups = list(_groups(offsets))
    losses = []
    with progress("capturing", plan.tokens, "tokens") as bar:
        for number, rows in enumerate(groups):
            path = directory / f"shard-{number:05}.bin"
            tokens = int(offsets[rows.stop] - offsets[rows.start])
            done = _loss_of(path, tokens * plan.layout.bytes_per_token)
            if done is None:
                done = _shard(model, source, path, plan, options, rows, number)
            losses.append(done)
            bar.advance(tokens)
    data = io.BytesIO()
    np.save(data, table)
    with atomic_file(directory / ROWS_NAME, overwrite=True) as stream:
        stream.write(data.getvalue())
    whole = np.sum([[d["mass"], d["kl"], d["error"] / plan.k] for d in losses], 0) / plan.tokens
    shards = [_described(directory / f"shard-{i:05}.bin", offsets, rows) for i, rows in enumerate(groups)]
    quality = Quality(
        mass=whole[0], kl_nats=whole[1], mean_log_prob=whole[2], worst_log_prob=max(d["worst"] for d in losses)
    )
    manifest = Manifest(
        plan=plan, rows_sha256=hashlib.sha256(data.getvalue()).hexdigest(), shards=shards, quality=quality
    )
    _write_json(directory / MANIFEST_NAME, manifest)


def _groups(offsets: NDArray[np.int64]) -> Iterator[range]:
    """Rows of each shard."""
    begin = 0
    for row in range(len(offsets) - 1):
        if offsets[row + 1] - offsets[begin] >= SHARD_TOKENS or row == len(offsets) - 2:
            yield range(begin, row + 1)
            begin = row + 1


def _described(path: Path, offsets: NDArray[np.int64], rows: range) -> Shard:
    first, end = int(offsets[rows.start]), int(offsets[rows.stop])
    return Shard(name=path.name, first_token=first, tokens=end - first, sha256=file_digest(path))


def _loss_of(path: Path, size: int) -> dict[str, float] | None:
    """What a shard that is whole lost; it is whole when what it lost, written after it, is there."""
    try:
        held: dict[str, float] = json.loads(path.with_suffix(".json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return held if path.is_file() and path.stat().st_size == size else None


def _shard(
    model: Any, source: RowSource, path: Path, plan: Plan, options: CaptureOptions, rows: range, number: int
) -> dict[str, float]:
    rng = torch.Generator().manual_seed((plan.seed << 20) + number)
    loss = {"mass": 0.0, "kl": 0.0, "error": 0.0, "worst": 0.0}
    with atomic_file(path, overwrite=True) as stream:
        for begin in range(rows.start, rows.stop, options.batch_rows):
            numbers = range(begin, min(begin + options.batch_rows, rows.stop))
            for ids, log_probs in _kept(model, source, numbers, plan, rng):
                records = plan.layout.pack(ids, log_probs)
                stream.write(records.tobytes())
                _add_loss(loss, plan.layout, records, ids, log_probs, plan.kind)
    with atomic_file(path.with_suffix(".json"), overwrite=True) as stream:
        stream.write(json.dumps(loss).encode())
    return loss


def _kept(
    model: Any, source: RowSource, numbers: Sequence[int], plan: Plan, rng: torch.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids and log-probabilities of the counted tokens of some rows, chunk by chunk."""
    head = Head.of(model)
    device = head.weight.device
    batch = on_device(batch_of(source, numbers), device)
    with torch.no_grad():
        hidden = last_hidden(model, batch)
    for log_probs in log_probabilities(DenseTargets(hidden, head), plan.vocabulary):
        if plan.kind == "top_k":
            values, ids = log_probs.float().topk(plan.k, -1)
        else:
            points = torch.rand(len(log_probs), plan.k, dtype=torch.float64, generator=rng)
            ids = draw(log_probs, points.to(device))
            values = log_probs.float().gather(1, ids)
        yield ids.cpu().numpy(), values.cpu().numpy()


def _add_loss(
    loss: dict[str, float], layout: Format, records: NDArray[np.uint8], ids: NDArray[np.int64],
    log_probs: NDArray[np.float32], kind: str,
) -> None:  # fmt: skip
    """Add what the encoding of some tokens lost; the KL is over the kept ids and the bucket of all others."""
    read = layout.unpack(records)[1].astype(np.float64)
    exact = np.maximum(log_probs.astype(np.float64), FLOOR)
    if layout.encoding == "packed":
        exact = np.take_along_axis(exact, np.argsort(ids, axis=1, kind="stable"), 1)
    loss["error"] += float(np.abs(exact - read).sum())
    loss["worst"] = max(loss["worst"], float(np.abs(exact - read).max(initial=0.0)))
    if kind == "sampled":
        loss["mass"] += len(ids)
        loss["kl"] += float((exact - read).sum()) / layout.k
        return
    p, q = np.exp(exact), np.exp(read)
    rest_p, rest_q = (np.maximum(1.0 - x.sum(1), 1e-12) for x in (p, q))
    loss["mass"] += float(p.sum())
    loss["kl"] += float((p * (exact - read)).sum() + (rest_p * np.log(rest_p / rest_q)).sum())
