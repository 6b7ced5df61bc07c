"""The checkpoints of a run, opened by their headers: what cannot be trained is refused before any weight is read."""

from typing import Any

from transformers import CONFIG_MAPPING

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError


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
