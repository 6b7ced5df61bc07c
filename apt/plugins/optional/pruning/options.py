"""Options of the operation ``prune``."""

from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from apt.console.errors import UsageError
from apt.console.units import parse_bytes, parse_count, parse_share
from apt.options import ConfigRef, ModelRef, Options, OutputPath, Overwrite, TextRef
from apt.plugins.optional.pruning.goals import Goal, Pattern

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint

#: Share of the linear weights to remove when no goal is given.
DEFAULT_RATIO: Final = 0.25

#: The options that say how far to go; one of them is given at most.
GOALS: Final = ("ratio", "pattern", "target_params", "target_bytes", "target_speed")


class PruneOptions(Options):
    """What to prune, how far, and on which text to calibrate and to measure."""

    model: ModelRef
    output: OutputPath
    strategy: str = Field(
        default="structured",
        description="A component of kind strategy: structured (smaller and faster), a mask such as sparsegpt (zeros "
        "only), or one of a plugin.",
    )
    ratio: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Share of the decoder's linear weights to remove; 0.25 when no goal is given.",
    )
    pattern: str | None = Field(
        default=None, description="Instead: N:M such as 2:4; of every M neighbouring weights N are kept."
    )
    target_params: str | int | None = Field(
        default=None, description="Instead: parameters that may be left, such as 700M, 1.2B, 70% or 0.7x."
    )
    target_bytes: str | int | None = Field(
        default=None, description="Instead: bytes that the weight files may have, such as 3GiB, 70% or 0.7x."
    )
    target_speed: float | None = Field(
        default=None,
        gt=1.0,
        le=100.0,
        description="Instead: how many times the dense model's decode speed to reach.",
    )
    calibration: TextRef | None = Field(
        default=None,
        description="Calibration text: embedded, self (sampled from the model), or a .txt, .jsonl or .npz file; when "
        "absent, embedded for tiny, else self.",
    )
    heldout: TextRef | None = Field(
        default=None,
        description="What to measure on; when absent, the held-out split of the calibration text, or for a file "
        "without one the last tenth of its rows, which are then not fitted on.",
    )
    tokens: int = Field(default=16384, ge=256, le=2**31, description="Calibration tokens, at most.")
    heldout_rows: int = Field(default=64, ge=1, description="Rows to measure on, at most.")
    effort: Literal["light", "fast", "full"] = Field(
        default="fast",
        description="light: a forward pass chooses, nothing is fitted; fast: least squares; full: every matrix of a "
        "block is refitted, several times slower.",
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="The strategy's own settings by name."
    )
    recover: ConfigRef | None = Field(
        default=None,
        description="Then train the cut model on the dense one's predictions: a training config, or the name of a "
        "shipped one such as kd.",
    )
    stream: bool = Field(
        default=False, description="Layer by layer from the files: one layer and its activations in memory."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of whatever the strategy draws.")
    speed: bool = Field(default=True, description="Measure prefill and decode speed before and after.")
    overwrite: Overwrite = False

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Pattern.parse(value)
            except UsageError as error:
                raise ValueError(f"not an N:M pattern ({error.hint})") from None
        return value

    @field_validator("target_params", "target_bytes")
    @classmethod
    def _amount(cls, value: str | int | None, info: Any) -> str | int | None:
        if value is not None:
            _resolve(value, parse_count if info.field_name == "target_params" else parse_bytes, 1)
        return value

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        given = ["--" + name.replace("_", "-") for name in GOALS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; give one of them")
        return self

    def goal(self, checkpoint: "Checkpoint") -> Goal:
        """Return the goal in figures of a checkpoint, which shares are of.

        Of the bytes of weight files, those that are no tensor's (headers) are taken off.

        :raises UsageError: when the target is not below what the checkpoint has.
        """
        if self.pattern is not None:
            return Goal(pattern=Pattern.parse(self.pattern))
        if self.target_params is not None:
            asked = _resolve(self.target_params, parse_count, checkpoint.parameters)
            _check_below(asked, checkpoint.parameters, "parameters", "--target-params")
            return Goal(parameters=asked)
        if self.target_bytes is not None:
            asked = _resolve(self.target_bytes, parse_bytes, checkpoint.size_bytes)
            headers = checkpoint.size_bytes - sum(t.size_bytes for t in checkpoint.tensors.values())
            _check_below(asked, checkpoint.size_bytes, "bytes", "--target-bytes")
            if asked <= headers:
                raise UsageError(f"--target-bytes {self.target_bytes}: the files' headers alone have {headers:,} bytes")
            return Goal(size_bytes=asked - headers)
        if self.target_speed is not None:
            return Goal(speed=self.target_speed)
        return Goal(ratio=DEFAULT_RATIO if self.ratio is None else self.ratio)


def _resolve(value: str | int, parse: Any, whole: int) -> int:
    """Return an absolute figure of one that may be a share of ``whole``.

    :raises ValueError: for a text that says none, or a share outside 0 to 1.
    """
    share = parse_share(str(value))
    if share is None:
        return int(parse(str(value)))
    if not 0.0 < share < 1.0:
        raise ValueError(f"{value!r} is no share between 0 and 1")
    return int(share * whole)


def _check_below(asked: int, whole: int, unit: str, option: str) -> None:
    if asked >= whole:
        raise UsageError(f"{option}: {asked:,} {unit} are not fewer than the model has ({whole:,})")
