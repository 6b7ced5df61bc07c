"""Sharded training (FSDP2): each process keeps its part of every parameter, and gathers a layer while it is needed.

Sharding is done here and not by accelerate, which trains with plain DDP on a CPU and does not say so: one way for CPU
and CUDA, which two CPU processes test. What is saved is whole tensors, written by one process, so that saved states
and results are the same files as without sharding.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from apt.console.errors import UnsupportedError
from apt.training.forward import layers_of
from apt.training.optimizers.muon import Together
from apt.training.parallel import processes


def refuse_sharding(sharding: str) -> None:
    """Refuse to shard where there is nothing to shard over.

    :raises UnsupportedError: for ``fsdp2`` in a single process.
    """
    if sharding == "fsdp2" and processes().num_processes < 2:
        raise UnsupportedError(
            "train.sharding: fsdp2 shards over processes, and there is one",
            hint="torchrun --nproc-per-node N -m apt_model …, or sharding: none",
        )


def stand_in(model: Any) -> Any:
    """Return a copy of a model to be sharded in its place; the parameters' memory is that of the model.

    ``fully_shard`` changes a model's classes and hooks for good; the model itself is to stay a stock one.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def shard(module: Any) -> None:
    """Shard a :class:`~apt.training.module.LossModule`'s parameters over the processes, in place.

    Each decoder layer is gathered when it is needed and freed afterwards. Embedding, norm, head and the loss's own
    parameters are one more unit: the loss runs the body and the head inside the module's forward pass, therefore the
    module, not the model, is what is gathered around them; so it is around ``score``.

    :raises UnsupportedError: for a model whose layers are not found.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    layers = layers_of(module.model)
    if layers is None:
        raise UnsupportedError(f"{module.model.config.model_type}: the layers to shard are not known")
    for layer in layers:
        fully_shard(layer)
    fully_shard(module)
    register_fsdp_forward_method(module, "score")
    module.register_load_state_dict_pre_hook(_take_parts)
    # Accelerate's mark of a module that needs no wrapping any more: DDP knows nothing of sharded parameters.
    module._is_accelerate_prepared = True


def empty(model: Any) -> None:
    """Free the memory of a model's parameters while its stand-in is trained."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def fill(model: Any, sharded: Any) -> None:
    """Give an emptied model the parameters of its sharded stand-in; every process has to call it."""
    parts = sharded.state_dict()  # and not the parameters, which may be as the last forward pass left them
    for name, parameter in model.named_parameters():
        parameter.data = whole(parts[name]).to(parameter.device)
    for mine, theirs in zip(model.buffers(), sharded.buffers(), strict=True):
        mine.copy_(theirs)


def whole(tensor: Any) -> Tensor:
    """Return a tensor in one piece, gathered where it is sharded; every process has to call it then."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()


def whole_states(optimizer: torch.optim.Optimizer) -> "list[WholeState]":
    """Let an optimizer of sharded parameters, or each of those that step as one, be saved whole."""
    return [WholeState(each) for each in (optimizer.optimizers if isinstance(optimizer, Together) else [optimizer])]


class WholeState:
    """Saves the state of an optimizer of sharded parameters whole, and loads it into parts.

    One process alone asks the optimizer for its state, while gathering takes all of them: they do it before, together,
    and that process's ``state_dict`` gives what was gathered.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._gathered: dict[int, dict[str, Any]] | None = None
        optimizer.register_state_dict_post_hook(self._give)
        optimizer.register_load_state_dict_pre_hook(self._take)

    def gather(self, *, keep: bool) -> None:
        """Gather the state for the next ``state_dict``; every process has to call it, some without keeping it."""
        gathered: dict[int, dict[str, Any]] = {}
        for number, held in self._optimizer.state_dict()["state"].items():
            parts = {key: whole(v).cpu() if isinstance(v, Tensor) else v for key, v in held.items()}
            if keep:
                gathered[number] = parts
        self._gathered = gathered if keep else None

    def _give(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        gathered, self._gathered = self._gathered, None
        return None if gathered is None else {**state, "state": gathered}

    def _take(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        of_number = dict(zip(numbers, parameters, strict=True))
        parts = {
            number: {key: _part_of(v, of_number[number]) if isinstance(v, Tensor) else v for key, v in held.items()}
            for number, held in state["state"].items()
        }
        return {**state, "state": parts}


def _take_parts(module: Any, state: dict[str, Any], *rest: Any) -> None:
    """Before whole tensors are loaded, take this process's part of each."""
    own = module.state_dict()  # and not the parameters, which may be as the last forward pass left them
    for name in state.keys() & own.keys():
        state[name] = _part_of(state[name], own[name])


def _part_of(tensor: Tensor, parameter: Any) -> Tensor:
    """Return a whole tensor as it is sharded where a parameter is; as it is where it has another shape (a counter)."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor) or not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    # Every process holds the whole tensor: nothing is sent.
    local = tensor.to(parameter.device)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
