"""What a run needs, looked at by headers alone: what cannot be done is refused before any weight is read."""

from typing import Any, Final

from transformers import CONFIG_MAPPING

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError
from apt.registry import Registry
from apt.training.components import needed_by, sections_of
from apt.training.config import TrainConfig
from apt.training.sharding import refuse_sharding
from apt.training.tracking.choice import check_tracking

#: Resources that are made of weights; data that need none of them are read before any weight is.
_OF_WEIGHTS: Final = frozenset({"model", "teacher"})


def check_possible(config: TrainConfig) -> None:
    """Refuse a run that cannot be done on this machine.

    :raises UnsupportedError: when sharding was asked for where it cannot be done.
    :raises AptError: when a tracker is asked for that cannot be reached.
    :raises MissingDependencyError: when a component or a tracker needs a library that is not installed.
    """
    refuse_sharding(config.train.sharding)
    check_tracking(config.tracking)
    for _, section in sections_of(config):
        section.check_installed()


def open_trainable(ref: str) -> Checkpoint:
    """Open a checkpoint by its headers.

    :raises UnsupportedError: for one that only its own code can run, and for one that is quantized.
    """
    found = Checkpoint.open(ref)
    kind = found.config.get("model_type")
    if kind not in CONFIG_MAPPING:
        own = "; the code in the checkpoint is never run" if "auto_map" in found.config else ""
        raise UnsupportedError(f"{found.path}: transformers has no model of type {kind!r}{own}")
    dtype = found.stored_dtype
    if not dtype.is_floating_point or dtype.itemsize < 2 or "quantization_config" in found.config:
        raise UnsupportedError(
            f"{found.path}: its weights are quantized, and nothing can be trained in them",
            hint="take the model that it was quantized from",
        )
    return found


def tokenizer_of(model: Checkpoint) -> Any:
    """Return a model's tokenizer.

    :raises BadInputError: when it makes ids that the model has no embedding of.
    """
    tokenizer = model.tokenizer()
    ids = int(model.config.get("vocab_size") or 0)
    if ids and len(tokenizer) > ids:
        raise BadInputError(
            f"{model.path}: the tokenizer knows {len(tokenizer):,} ids, the model has {ids:,}",
            hint="the tokenizer is of another model",
        )
    return tokenizer


def rows_need_weights(config: TrainConfig, registry: Registry | None) -> bool:
    """Whether the rows of the section ``data`` can be made only when model and teacher are in memory.

    So it is where a component says that it needs one of them, and where rows hold several documents: the models
    themselves are asked then whether they keep them apart.
    """
    if config.data is None:
        return False
    packs = any(getattr(section, "layout", None) == "packed" for _, section in sections_of(config.data))
    return packs or bool(_OF_WEIGHTS & needed_by(config.data, registry).keys())
