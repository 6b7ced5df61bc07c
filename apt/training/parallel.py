"""Training over several processes."""

from typing import Any

import torch

from apt.console.errors import UnsupportedError


def refuse_sharding(sharding: str) -> None:
    """Refuse to shard where accelerate would train without sharding and not say so.

    :raises UnsupportedError: for ``fsdp2`` without a GPU: accelerate 1.15 makes that plain DDP.
    """
    if sharding == "fsdp2" and not torch.cuda.is_available():
        raise UnsupportedError(
            "train.sharding: fsdp2 needs CUDA; on a CPU the parameters would not be sharded", hint="use sharding: none"
        )


def shard(model: Any) -> Any:
    """Shard a causal language model's parameters over the processes (FSDP2), layer by layer, in place.

    Each decoder layer is gathered when it is needed and freed afterwards; embedding, norm and head are one more unit.

    :raises UnsupportedError: for a model whose layers are not found.
    """
    from torch.distributed.fsdp import fully_shard

    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise UnsupportedError(f"{model.config.model_type}: the layers to shard are not known")
    for layer in layers:
        fully_shard(layer)
    return fully_shard(model)
