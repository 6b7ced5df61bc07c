"""A decoder seen as a row of residual blocks, whatever the family calls its modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture, Dimensions
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.decoder.branches import Branch
from apt.plugins.optional.pruning.decoder.matrices import Matrix, matrices_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes

#: Families whose decoder layer is norm → attention → (norm) → add → norm → MLP → (norm) → add.
FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2")


def check_family(architecture: Architecture) -> None:
    """Refuse what the surgery does not know.

    :raises UnsupportedError: for another family.
    """
    if architecture.model_type not in FAMILIES:
        raise UnsupportedError(
            f"structured pruning does not know the architecture {architecture.model_type!r}",
            hint=f"known: {', '.join(FAMILIES)}",
        )


def sizes_of(architecture: Architecture, config: dict[str, Any]) -> Sizes:
    """Return the sizes of the dense model."""
    d = architecture.dimensions(config)
    gated = "gate" in architecture.roles or "gate_up" in architecture.roles
    return Sizes(
        d.hidden, d.head_dim, d.layers, d.kv_heads, d.heads // d.kv_heads, d.ff,
        mlp_matrices=3 if gated else 2, heads_fill_hidden=architecture.heads_fill_hidden,
    )  # fmt: skip


@dataclass(frozen=True)
class Block:
    """The modules of one decoder layer.

    :param matrices: its linear matrices [out, in] by role: ``q k v o gate up down``, ``gate`` where there is one.
    :param output: how attention reaches the residual stream: the matrix ``o`` and a norm after it, if any.
    :param down: how the MLP does: the matrix ``down`` and a norm after it, if any.
    """

    layer: nn.Module
    matrices: dict[str, Matrix]
    attention_norm: nn.Module
    attention: nn.Module
    output: Branch
    mlp_norm: nn.Module
    mlp: nn.Module
    down: Branch


@dataclass(frozen=True)
class Decoder:
    """A model's blocks in order, with what comes after them."""

    model: Any
    blocks: tuple[Block, ...]
    final_norm: Any
    head: Any

    @classmethod
    def of(cls, model: Any, architecture: Architecture) -> "Decoder":
        """Find the modules by the names of the descriptor."""
        check_family(architecture)
        sizes = architecture.dimensions(model.config.to_dict())
        return cls(
            model,
            tuple(
                block_of(model.get_submodule(architecture.layer_prefix.format(i).rstrip(".")), architecture, sizes)
                for i in range(sizes.layers)
            ),
            _module(model, architecture.final_norm),
            model.get_output_embeddings(),
        )

    def logits(self, stream: Tensor) -> Tensor:
        """Return the logits of the residual stream after the last block; [rows, window, hidden] → [.., vocab]."""
        result: Tensor = self.head(self.final_norm(stream))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return result if cap is None else cap * torch.tanh(result / cap)


def block_of(layer: nn.Module, architecture: Architecture, sizes: Dimensions) -> Block:
    """Find the modules of a decoder layer, which may stand alone, by the paths of the descriptor."""
    roles = architecture.roles
    matrices = matrices_of(layer, architecture, sizes)

    def module(role: str) -> Any:
        return layer.get_submodule(roles[role]) if role in roles else None

    return Block(
        layer=layer,
        matrices=matrices,
        attention_norm=module("attention_norm"),
        attention=layer.get_submodule(roles["o"].rpartition(".")[0]),
        output=Branch(matrices["o"], module("attention_post_norm")),
        mlp_norm=module("mlp_norm"),
        mlp=layer.get_submodule(roles["down"].rpartition(".")[0]),
        down=Branch(matrices["down"], module("mlp_post_norm")),
    )


def _module(model: Any, tensor: str) -> Any:
    return model.get_submodule(tensor.removesuffix(".weight"))


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first positional input of every call of ``module``."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Collect the keyword arguments of every call of ``module``."""
    seen: list[dict[str, Any]] = []

    def remember(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs)

    handle = module.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


class _Received(Exception):
    """Carries what a module received out of the call that it cuts short."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def only_input(module: nn.Module, call: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Run ``call`` as far as ``module`` and return what that received; what comes after is not computed."""

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Received(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        call(*args, **kwargs)
    except _Received as received:
        return received.value
    finally:
        handle.remove()
    raise AssertionError("the module was not reached")
