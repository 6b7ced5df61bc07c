"""What a training run is made of: a tree of sections, each validated by the schema of the component that it names."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from apt.console.errors import one_line
from apt.document import Document, Location, read
from apt.registry import Registry
from apt.training.components import core_registry, placed_sections, sections_of
from apt.training.losses.ce import CrossEntropyOptions
from apt.training.optimizers.adamw import AdamWOptions
from apt.training.samplers.epochs import ShuffledOptions
from apt.training.schedulers import CosineOptions
from apt.training.sections import (
    DataSection,
    LossSection,
    OptimizerSection,
    SamplerSection,
    SchedulerSection,
    TuningSection,
)
from apt.training.tuning.full import FullOptions
from apt.training.validation import check

Precision = Literal["auto", "fp32", "bf16"]
Sharding = Literal["none", "fsdp2"]
OnFault = Literal["stop", "skip"]
WandbMode = Literal["online", "offline", "disabled"]

#: Optimizers that are tested on sharded parameters.
_SHARDED_OPTIMIZERS: Final = ("adamw", "muon")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EarlyStopping(_Settings):
    """When a run ends before its last step."""

    patience: int = Field(ge=1, description="Evaluations without an improvement after which the run ends.")
    min_delta: float = Field(default=0.0, ge=0.0, description="What counts as an improvement, in nats per token.")


class Guards(_Settings):
    """Limits that a step is held to before the optimizer acts on it."""

    on_non_finite: OnFault = Field(
        default="stop", description="Of a loss or gradient that is no finite number: stop, or skip the step."
    )
    spike_factor: float | None = Field(
        default=None,
        gt=1.0,
        description="A step whose loss exceeds the mean of the last steps by this factor is a spike; none when absent.",
    )
    spike_window: int = Field(default=50, ge=2, description="Steps that the mean is taken over.")
    on_spike: OnFault = Field(default="skip", description="Of a spike: stop, or skip the step.")
    most_skipped: int = Field(default=20, ge=0, description="Steps that may be skipped before the run is stopped.")


class TrainSection(_Settings):
    """The ``train`` section."""

    loss: LossSection = Field(default=CrossEntropyOptions(), description="A component of kind loss.")
    optimizer: OptimizerSection = Field(default=AdamWOptions(), description="A component of kind optimizer.")
    scheduler: SchedulerSection = Field(default=CosineOptions(), description="A component of kind scheduler.")
    sampler: SamplerSection = Field(default=ShuffledOptions(), description="A component of kind sampler.")
    tuning: TuningSection = Field(default=FullOptions(), description="A component of kind tuning: what is trained.")
    steps: int = Field(ge=1, description="Optimizer steps.")
    batch_rows: int = Field(
        default=8,
        ge=1,
        description="Rows of one micro-batch of one process; a step sees batch_rows x grad_accum x processes rows.",
    )
    grad_accum: int = Field(default=1, ge=1, description="Micro-batches a step.")
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="Longer gradients are cut to this norm.")
    log_every: int | None = Field(
        default=None, ge=1, description="Steps between logged figures; as eval_every when absent."
    )
    eval_every: int = Field(
        default=50, ge=1, description="Steps between evaluations; the run's state is saved at each."
    )
    eval_rows: int = Field(
        default=16,
        ge=1,
        description="Rows that the best checkpoint is chosen by: of data.eval where there is one, else training rows "
        "set aside.",
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="None when absent.")
    guards: Guards = Field(default=Guards(), description="What is done about steps that would spoil the model.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Order of the rows, and every other random choice.")
    precision: Precision = Field(
        default="auto", description="Of matrix products; auto is bf16 where the machine multiplies it natively."
    )
    compile: bool = Field(default=False, description="Run the model's body through torch.compile.")
    sharding: Sharding = Field(
        default="none", description="fsdp2 shards parameters over the processes of torchrun; none repeats them (DDP)."
    )


class DataConfig(_Settings):
    """The ``data`` section: what is trained on, and what is evaluated on and never trained on."""

    train: DataSection = Field(description="A component of kind data.")
    eval: DataSection | None = Field(
        default=None, description="A component of kind data; when absent, train.eval_rows rows of train are set aside."
    )


class TrackingConfig(_Settings):
    """The ``tracking`` section: where figures go beside the run directory."""

    tensorboard: bool = Field(default=False, description="Write TensorBoard events to the run directory.")
    wandb_mode: WandbMode | None = Field(
        default=None, description="When absent: online where a key is present, else offline; disabled without wandb."
    )
    wandb_project: str = Field(default="apt_model", min_length=1, description="The project of the W&B run.")
    run_name: str | None = Field(default=None, min_length=1, description="Name of the run; the output's when absent.")


class TrainConfig(_Settings):
    """A whole run by its settings."""

    model: str | None = Field(
        default=None, min_length=1, description="The model to train, where the command names no other."
    )
    teacher: str | None = Field(
        default=None, min_length=1, description="The teacher of a distillation, where the command names no other."
    )
    data: DataConfig | None = Field(default=None, description="What is trained on; a caller may bring its own rows.")
    train: TrainSection = Field(description="The run.")
    tracking: TrackingConfig | None = Field(default=None, description="Nothing is tracked when absent.")

    def resolved(self) -> dict[str, Any]:
        """Return the config as plain values, defaults filled in."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return the sha256 of the resolved config."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()


def parse_config(values: Mapping[str, Any], registry: Registry | None = None) -> TrainConfig:
    """Validate a config as a whole; nothing else is read.

    :raises DocumentError: for an unknown key, component, type or range, with its path and the nearest known word.
    """
    return _checked(Document("", dict(values)), registry)


def read_config(path: Path, registry: Registry | None = None) -> TrainConfig:
    """Read a config from a YAML file and validate it as a whole.

    :raises NotFoundError: when there is no such file.
    :raises DocumentError: with every fault, each with file and line.
    """
    return _checked(read(path), registry)


def _checked(document: Document, registry: Registry | None) -> TrainConfig:
    config: TrainConfig = check(TrainConfig, document, registry or core_registry())
    for location, message in _contradictions(config):
        document.problem(location, f"{'.'.join(map(str, location))}: {message}")
    document.raise_problems()
    return config


def _contradictions(config: TrainConfig) -> Iterator[tuple[Location, str]]:
    """Yield what is right by itself and wrong together."""
    train = config.train
    if train.early_stopping is not None and train.eval_every > train.steps:
        yield ("train", "early_stopping"), "no evaluation comes before the last step; lower train.eval_every"
    if (train.log_every or 0) > train.steps:
        yield ("train", "log_every"), "nothing is logged before the last step; lower it"
    if train.sharding == "fsdp2" and any(kind == "rollout" for kind, _ in sections_of(config)):
        # A rollout runs the model outside of the module's forward pass, where embedding and head are not whole, and in
        # each process as many times as its own rows need, while gathering layers takes all of them.
        yield ("train", "sharding"), "a model that is sharded cannot write rows (rollout); use none"
    if train.sharding == "fsdp2" and train.compile:
        yield ("train", "sharding"), "a model that is sharded is not compiled; use none, or compile: false"
    if train.sharding == "fsdp2" and train.optimizer.name not in _SHARDED_OPTIMIZERS:
        # Adafactor's means over rows and columns are none over parts; of foreign ones it is not known.
        known, name = " and ".join(_SHARDED_OPTIMIZERS), train.optimizer.name
        yield ("train", "sharding"), f"{known} can step parameters that are sharded, {name} cannot; use none"
    for place, _, section in placed_sections(config):
        try:
            found = list(section.contradictions(config))
        except (Exception, SystemExit) as error:  # a foreign section may do anything
            yield place, f"cannot be checked: {one_line(error)}"
            continue
        for key, message in found:
            yield (*place, *filter(None, key.split("."))), message
