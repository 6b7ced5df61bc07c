"""What a logit cache says of itself."""

import json
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apt.console.errors import BadInputError, NotFoundError, UnsupportedError
from apt.training.teachers.packing import Encoding, Format

FORMAT: Final = 1
MANIFEST_NAME: Final = "manifest.json"
PLAN_NAME: Final = "plan.json"
OFFSETS_NAME: Final = "rows.npy"

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
    k: int = Field(ge=1)
    encoding: Encoding
    seed: int
    vocabulary: int = Field(ge=1)
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    teacher: str
    tokenizer: str
    rows_digest: str

    @property
    def layout(self) -> Format:
        """The layout of a record."""
        return Format(self.encoding, self.k, self.vocabulary)


class Quality(_Strict):
    """What the capture lost, summed up over tokens.

    :param mass: mean probability that the kept ids have.
    :param kl_nats: mean KL divergence of the distribution as it is read from the one that was kept, nats a token.
    :param worst_log_prob: largest error of a log-probability above one in a thousand, nats.
    """

    mass: float
    kl_nats: float
    worst_log_prob: float


class Manifest(_Strict):
    """A whole cache."""

    plan: Plan
    offsets_sha256: str
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
        except ValueError:
            raise BadInputError(f"{path}: not JSON") from None
        version = held.get("plan", {}).get("format") if isinstance(held, dict) else None
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
