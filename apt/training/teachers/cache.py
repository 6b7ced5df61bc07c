"""A teacher that is not there any more: what it said of a text, read from disk.

Records are memory-mapped and decoded for the tokens of a batch only. A cache answers for the rows that it was captured
from and no others.
"""

import hashlib
import io
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from apt.console.errors import BadInputError, UnsupportedError
from apt.training.contract import Batch, Resources, counted
from apt.training.data.files import fingerprint
from apt.training.forward import Body
from apt.training.sections import Section
from apt.training.teachers.contract import SparseTargets
from apt.training.teachers.manifest import OFFSETS_NAME, Manifest, Shard


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
        """
        self._directory = Path(options.path)
        self._manifest = Manifest.read(self._directory)
        self._check(resources)
        self._layout = self._manifest.plan.layout
        self._offsets = self._read_offsets()
        self._first = [s.first_token for s in self._manifest.shards]
        self._mapped: dict[str, NDArray[np.uint8]] = {}

    def _check(self, resources: Resources) -> None:
        plan = self._manifest.plan
        if resources.rows_digest is not None and resources.rows_digest != plan.rows_digest:
            raise UnsupportedError(
                f"{self._directory} was captured from another text than the one that is trained on",
                hint="capture again, or train on that text",
            )
        if resources.tokenizer is not None and plan.tokenizer not in ("", fingerprint(resources.tokenizer)):
            raise UnsupportedError(f"{self._directory} was captured with another tokenizer", hint="capture again")
        if resources.model is not None:
            ids = int(resources.model.get_output_embeddings().weight.shape[0])
            known = min(ids, resources.shared_vocab or ids)
            if plan.vocabulary > known:
                raise UnsupportedError(
                    f"{self._directory} holds {plan.vocabulary} ids; the model shares {known} with its teacher"
                )

    def _read_offsets(self) -> NDArray[np.int64]:
        data = (self._directory / OFFSETS_NAME).read_bytes()
        if hashlib.sha256(data).hexdigest() != self._manifest.offsets_sha256:
            raise BadInputError(f"{self._directory / OFFSETS_NAME}: damaged", hint="capture again")
        offsets: NDArray[np.int64] = np.load(io.BytesIO(data), allow_pickle=False)
        return offsets

    def targets(self, batch: Batch, *, rng: Any = None, body: Body | None = None) -> SparseTargets:
        """Return what the teacher said of the counted tokens.

        :raises UnsupportedError: for rows that were changed after they were captured.
        """
        rows = batch["row"].tolist()
        wanted = counted(batch["labels"]).sum(1).tolist()
        spans = []
        for row, tokens in zip(rows, wanted, strict=True):
            begin, end = (int(o) for o in self._offsets[row : row + 2])
            if end - begin != tokens:
                raise UnsupportedError(f"row {row} counts {tokens} tokens, its cache has {end - begin}")
            spans.append(np.arange(begin, end))
        ids, log_probs = self._layout.unpack(self._records(np.concatenate(spans)))
        device = batch["labels"].device
        found = torch.from_numpy(log_probs).to(device)
        sampled = self._manifest.plan.kind == "sampled"
        weights = torch.full_like(found, 1.0 / self._layout.k) if sampled else found.exp()
        return SparseTargets(torch.from_numpy(ids).to(device), weights, found, self._manifest.plan.kind)

    def body(self, batch: Batch, wanted: AbstractSet[str]) -> Body:
        """Refuse: a cache has no inner states."""
        raise UnsupportedError("a logit cache has no inner states", hint="keep the teacher in memory")

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
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                    raise BadInputError(f"{path}: its content is not what the manifest says", hint="capture again")
            mapped = np.memmap(path, np.uint8, mode="r").reshape(shard.tokens, self._layout.bytes_per_token)
            self._mapped[shard.name] = mapped
        return self._mapped[shard.name]
