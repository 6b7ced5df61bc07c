"""Training over several processes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from apt.console.errors import UnsupportedError
from apt.training.forward import base_of

_Result = TypeVar("_Result")


def processes() -> Any:
    """Return accelerate's view of the processes that train together, in a group of them if ``torchrun`` made one.

    Whoever asks first decides on the backend: without being told of the CPU, accelerate makes no group there.
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def refuse_sharding(sharding: str) -> None:
    """Refuse to shard where accelerate would train without sharding and not say so.

    :raises UnsupportedError: for ``fsdp2`` without a GPU: accelerate 1.15 makes that plain DDP.
    """
    if sharding == "fsdp2" and not torch.cuda.is_available():
        raise UnsupportedError(
            "train.sharding: fsdp2 needs CUDA; on a CPU the parameters would not be sharded", hint="use sharding: none"
        )


def layers_of(model: Any) -> Any:
    """Return a causal language model's decoder layers, also where adapters are around it.

    :raises UnsupportedError: for a model whose layers are not found.
    """
    layers = getattr(base_of(model), "layers", None)
    if layers is None:
        raise UnsupportedError(f"{model.config.model_type}: the layers to shard are not known")
    return layers


def shard(module: Any) -> Any:
    """Shard a :class:`~apt.training.module.LossModule`'s parameters over the processes (FSDP2), in place.

    Each decoder layer is gathered when it is needed and freed afterwards. Embedding, norm, head and the loss's own
    parameters are one more unit: the loss runs the body and the head inside the module's forward pass, therefore the
    module, not the model, is what is gathered around them.

    :raises UnsupportedError: for a model whose layers are not found.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in layers_of(module.model):
        fully_shard(layer)
    return fully_shard(module)


def sharding_arguments(sharding: str, model: Any) -> dict[str, Any]:
    """Return what ``TrainingArguments`` needs to shard as :func:`shard` does; nothing for ``none``.

    :raises UnsupportedError: for a model whose layers are not found.
    """
    if sharding == "none":
        return {}
    kinds = sorted({type(layer).__name__ for layer in layers_of(model)})
    wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": kinds}
    return {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True, **wrap}}


def on_first(action: Callable[[], _Result]) -> _Result:
    """Do something on the first process only; every process gets its result, or raises its error."""
    from accelerate.utils import broadcast_object_list

    state = processes()
    held: list[Any] = [None, None]
    if state.is_main_process:
        try:
            held = [action(), None]
        except Exception as error:  # told to all: the others would wait for ever
            held = [None, error]
    if state.num_processes > 1:
        broadcast_object_list(held, from_process=0)
    if held[1] is not None:
        raise held[1]
    result: _Result = held[0]
    return result
