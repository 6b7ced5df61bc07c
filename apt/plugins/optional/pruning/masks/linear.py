"""The linear modules of a block: their weights as [outputs, inputs] however they are stored, and what passes them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def weight_of(module: nn.Module, transposed: bool) -> Tensor:
    """Return the weight as [outputs, inputs]; a view of what the module holds, without gradient."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]  # torch stubs: Tensor or Module
    return weight.T if transposed else weight


def set_weight(module: nn.Module, transposed: bool, weight: Tensor) -> None:
    """Overwrite the weight with one given as [outputs, inputs]."""
    with torch.no_grad():
        weight_of(module, transposed).copy_(weight)


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias, without gradient, where there is one."""
    bias = getattr(module, "bias", None)
    return None if bias is None else bias.detach()


def output_of(block: nn.Module, stream: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Run a decoder layer; some families' give their output in a tuple."""
    result = block(stream, **call)
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output


@contextmanager
def passing(modules: Mapping[str, nn.Module]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Remember the latest input and output of each module, by its role; the graph is kept where there is one."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(role: str, module: nn.Module) -> Any:
        def remember(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            inputs[role], outputs[role] = args[0], output

        return module.register_forward_hook(remember)

    handles = [watch(role, module) for role, module in modules.items()]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
