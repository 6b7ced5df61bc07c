"""What a logit cache says of itself."""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from apt.console.errors import BadInputError, NotFoundError, UnsupportedError
from apt.training.contract import Row, counted
from apt.training.teachers.packing import Encoding, Format

FORMAT: Final = 1
MANIFEST_NAME: Final = "manifest.json"
PLAN_NAME: Final = "plan.json"
ROWS_NAME: Final = "rows.npy"

Kind = Literal["top_k", "sampled"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Strict):
    """A file of records: the tokens of some rows, in their order."""

    name: str = Field(pattern=r"^shard-\d{5}\.bin$")
    first_token: int = Field(ge=0)
    tokens: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Plan(_Strict):
    """What a cache is captured from and how; a capture goes on only where this is equal."""

    format: int
    kind: Kind
    k: int = Field(ge=1, le=4096)
    encoding: Encoding
    seed: int
    vocabulary: int = Field(ge=1, lt=2**31)
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    teacher: str
    tokenizer: str
    rows_digest: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "top_k" and self.k > self.vocabulary:
            raise ValueError(f"{self.k} different ids of {self.vocabulary}")
        return self

    @property
    def layout(self) -> Format:
        """The layout of a record."""
        return Format(self.encoding, self.k, self.vocabulary)


class Quality(_Strict):
    """What the capture lost, summed up over tokens.

    :param mass: mean probability that the kept ids have.
    :param kl_nats: mean KL divergence of the distribution as it is read from the one that was kept, nats a token; of
        draws, what it adds to the value of the loss (ids and weights, and with them the gradient, are exact).
    :param mean_log_prob: mean error of a log-probability, nats.
    :param worst_log_prob: the largest, nats; log-probabilities below -60 count as that.
    """

    mass: float
    kl_nats: float
    mean_log_prob: float
    worst_log_prob: float


class Manifest(_Strict):
    """A whole cache."""

    plan: Plan
    rows_sha256: str
    shards: list[Shard]
    quality: Quality

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the manifest of a cache.

        :raises NotFoundError: when there is none: no cache, or one whose capture did not end.
        :raises UnsupportedError: for another version of the format; :raises BadInputError: when it is broken.
        """
        path = directory / MANIFEST_NAME
        try:
            held: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            begun = (directory / PLAN_NAME).exists()
            hint = "its capture did not end: give the same call again" if begun else "capture one: distill --cache DIR"
            raise NotFoundError(f"no whole logit cache in {directory}", hint=hint) from None
        except (ValueError, RecursionError):
            raise BadInputError(f"{path}: not JSON", hint="capture again") from None
        plan = held.get("plan") if isinstance(held, dict) else None
        version = plan.get("format") if isinstance(plan, dict) else None
        if version != FORMAT:
            raise UnsupportedError(f"{path}: a cache of format {version!r}; this version reads {FORMAT}")
        try:
            found = cls.model_validate_json(json.dumps(held), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise BadInputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
        found.check(directory)
        return found

    def check(self, directory: Path) -> None:
        """Refuse shards that do not follow one another or have not the size that they must have.

        :raises BadInputError: naming the file.
        """
        token = 0
        for shard in self.shards:
            path = directory / shard.name
            size = path.stat().st_size if path.is_file() else -1
            if shard.first_token != token or size != shard.tokens * self.plan.layout.bytes_per_token:
                raise BadInputError(f"{path}: missing, or not of the size that the manifest says", hint="capture again")
            token += shard.tokens
        if token != self.plan.tokens:
            raise BadInputError(f"{directory / MANIFEST_NAME}: shards of {token} tokens, not {self.plan.tokens}")


def row_table(rows: Iterable[Row]) -> NDArray[np.int64]:
    """Of each row, how many counted tokens stand before it, and its mark; one line more: ``[rows + 1, 2]``."""
    found, tokens = [], 0
    for row in rows:
        mask = counted(row["labels"][None])[0]
        found.append((tokens, mark_of(row["input_ids"], mask, row.get("position_ids"))))
        tokens += int(mask.sum())
    return np.array([*found, (tokens, 0)], np.int64)


def read_rows(directory: Path, manifest: Manifest) -> NDArray[np.int64]:
    """Read the table that :func:`row_table` made.

    :raises BadInputError: when it is not the one that the manifest names.
    """
    path = directory / ROWS_NAME
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != manifest.rows_sha256:
        raise BadInputError(f"{path}: missing, or not what the manifest says", hint="capture again")
    try:
        found: NDArray[np.int64] = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        raise BadInputError(f"{path}: not an array", hint="capture again") from None
    if found.dtype != np.int64 or found.shape != (manifest.plan.rows + 1, 2):
        raise BadInputError(f"{path}: not an array of {manifest.plan.rows} rows", hint="capture again")
    return found


def mark_of(ids: Tensor, mask: Tensor, positions: Tensor | None) -> int:
    """A hash, in 64 bits, of all that a teacher's distributions of a row depend on; padding does not change it.

    :param ids: ``[tokens]``; :param mask: ``[tokens - 1]``, of the counted tokens; :param positions: ``[tokens]``, from
        0 on when absent. All are on the CPU.
    """
    counts = mask.numpy()
    n = int(counts.nonzero()[0].max(initial=-1)) + 1
    held = hashlib.blake2b(counts[:n].tobytes(), digest_size=8)
    for line in (ids.numpy(), np.arange(n) if positions is None else positions.numpy()):
        held.update(line[:n].astype("<i8").tobytes())
    return int.from_bytes(held.digest(), "little", signed=True)
