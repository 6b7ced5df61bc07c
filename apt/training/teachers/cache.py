"""A teacher that is not there any more: what it said of a text, read from disk.

Records are memory-mapped and decoded for the tokens of a batch only. A cache answers for the rows that it was captured
from and no others.
"""

from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from apt.checkpoint.reader import file_digest
from apt.console.errors import BadInputError, UnsupportedError, UsageError
from apt.training.contract import Batch, Resources, counted
from apt.training.data.files import fingerprint
from apt.training.forward import Body
from apt.training.sections import Section
from apt.training.teachers.contract import SparseTargets
from apt.training.teachers.manifest import Manifest, Shard, mark_of, read_rows
from apt.training.teachers.packing import first_of

#: Shards that are mapped at a time.
OPEN_SHARDS: Final = 64


class CacheTeacherOptions(Section):
    """Options of ``cache``."""

    name: Literal["cache"] = Field(default="cache", description="The component.")
    path: str = Field(min_length=1, description="The directory that the teacher's logits were captured into.")


class CacheTeacher:
    """Answers with what was captured."""

    needs: frozenset[str] = frozenset()
    offers: frozenset[str] = frozenset()

    def __init__(self, options: CacheTeacherOptions, resources: Resources) -> None:
        """Open a cache.

        :raises NotFoundError: when there is none; :raises BadInputError: when it is damaged.
        :raises UnsupportedError: when it was captured from another text, or with another tokenizer.
        :raises UsageError: when the tokenizer is not given and the cache is for one.
        """
        self._directory = Path(options.path)
        self._manifest = Manifest.read(self._directory)
        self._check(resources)
        self._layout = self._manifest.plan.layout
        self._rows = read_rows(self._directory, self._manifest)
        self._first = [s.first_token for s in self._manifest.shards]
        self._sound: set[str] = set()
        self._mapped: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()

    def _check(self, resources: Resources) -> None:
        plan = self._manifest.plan
        if resources.rows_digest is not None and resources.rows_digest != plan.rows_digest:
            raise UnsupportedError(
                f"{self._directory} was captured from another text than the one that is trained on",
                hint="capture again, or train on that text",
            )
        if plan.tokenizer:
            if resources.tokenizer is None:
                raise UsageError(f"{self._directory} is for one tokenizer; the run must say which it has")
            if plan.tokenizer != fingerprint(resources.tokenizer):
                raise UnsupportedError(f"{self._directory} was captured with another tokenizer", hint="capture again")
        if resources.model is not None:
            ids = int(resources.model.get_output_embeddings().weight.shape[0])
            known = min(ids, resources.shared_vocab or ids)
            if plan.vocabulary > known:
                raise UnsupportedError(
                    f"{self._directory} holds {plan.vocabulary} ids; the model shares {known} with its teacher"
                )

    def targets(self, batch: Batch, *, rng: Any = None, body: Body | None = None) -> SparseTargets:
        """Return what the teacher said of the counted tokens.

        :raises UnsupportedError: for rows without numbers (a stream's), or another text than was captured.
        :raises BadInputError: when a shard is damaged.
        """
        tokens = np.concatenate([np.arange(*span) for span in self._spans(batch)])
        try:
            ids, log_probs = self._layout.unpack(self._records(tokens))
            if self._manifest.plan.kind == "top_k" and not first_of(np.sort(ids, 1)).all():
                raise ValueError("a record has an id twice")
        except ValueError as error:
            raise BadInputError(f"{self._directory}: {error}", hint="capture again") from None
        device = batch["labels"].device
        found = torch.from_numpy(log_probs).to(device)
        sampled = self._manifest.plan.kind == "sampled"
        weights = torch.full_like(found, 1.0 / self._layout.k) if sampled else found.exp()
        return SparseTargets(torch.from_numpy(ids).to(device), weights, found, self._manifest.plan.kind)

    def body(self, batch: Batch, wanted: AbstractSet[str]) -> Body:
        """Refuse: a cache has no inner states."""
        raise UnsupportedError("a logit cache has no inner states", hint="keep the teacher in memory")

    def _spans(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """First token of each row of a batch, and the end, in the captured text."""
        if "row" not in batch:
            raise UnsupportedError(
                "a logit cache knows rows by their numbers, and those of a stream have none",
                hint="train without streaming, or keep the teacher in memory",
            )
        mask, ids = counted(batch["labels"]).cpu(), batch["input_ids"].cpu()
        positions = batch["position_ids"].cpu() if "position_ids" in batch else None
        for i, row in enumerate(batch["row"].tolist()):
            if not 0 <= row < self._manifest.plan.rows:
                raise UnsupportedError(f"row {row} was not captured: {self._directory} has {self._manifest.plan.rows}")
            mark = mark_of(ids[i], mask[i], None if positions is None else positions[i])
            if mark != self._rows[row, 1]:
                raise UnsupportedError(
                    f"row {row} is not the text that was captured in {self._directory}",
                    hint="capture again; a student's own samples need the teacher in memory",
                )
            yield int(self._rows[row, 0]), int(self._rows[row + 1, 0])

    def _records(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Records of tokens by their numbers."""
        found = np.empty((len(tokens), self._layout.bytes_per_token), np.uint8)
        owners = np.searchsorted(self._first, tokens, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            shard = self._manifest.shards[int(owner)]
            found[mine] = self._open(shard)[tokens[mine] - shard.first_token]
        return found

    def _open(self, shard: Shard) -> NDArray[np.uint8]:
        """Map a shard; the first time its bytes are compared with the manifest's hash."""
        if shard.name not in self._mapped:
            path = self._directory / shard.name
            if shard.name not in self._sound and file_digest(path) != shard.sha256:
                raise BadInputError(f"{path}: its content is not what the manifest says", hint="capture again")
            self._sound.add(shard.name)
            self._mapped[shard.name] = np.memmap(path, np.uint8, mode="r").reshape(
                shard.tokens, self._layout.bytes_per_token
            )
            if len(self._mapped) > OPEN_SHARDS:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(shard.name)
        return self._mapped[shard.name]
