"""A decoder seen as a row of residual blocks, whatever the family calls its modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.errors import UnsupportedError
from apt.plugins.optional.pruning.plans import Sizes

#: Families whose decoder layer is norm → attention → add → norm → gated MLP → add, with plain q, k, v, o matrices.
FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")


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
    return Sizes(d.hidden, d.head_dim, d.layers, d.kv_heads, d.heads // d.kv_heads, d.ff)


@dataclass(frozen=True)
class Block:
    """The modules of one decoder layer."""

    layer: nn.Module
    attention_norm: nn.Module
    attention: nn.Module
    output: nn.Linear
    mlp_norm: nn.Module
    mlp: nn.Module
    down: nn.Linear


@dataclass(frozen=True)
class Decoder:
    """A model's blocks in order, with what comes after them."""

    model: Any
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, model: Any, architecture: Architecture) -> "Decoder":
        """Find the modules by the names of the descriptor."""
        check_family(architecture)
        layers = architecture.dimensions(model.config.to_dict()).layers
        return cls(
            model,
            tuple(_block(model, architecture, index) for index in range(layers)),
            _module(model, architecture.final_norm),
            model.get_output_embeddings(),
        )

    def logits(self, stream: Tensor) -> Tensor:
        """Return the logits of the residual stream after the last block; [rows, window, hidden] → [.., vocab]."""
        result: Tensor = self.head(self.final_norm(stream))
        return result


def _block(model: Any, architecture: Architecture, index: int) -> Block:
    output = architecture.layer_tensor(index, "o")
    down = architecture.layer_tensor(index, "down")
    attention = _parent(output)
    return Block(
        layer=model.get_submodule(_parent(attention)),
        attention_norm=_module(model, architecture.layer_tensor(index, "attention_norm")),
        attention=model.get_submodule(attention),
        output=_module(model, output),
        mlp_norm=_module(model, architecture.layer_tensor(index, "mlp_norm")),
        mlp=model.get_submodule(_parent(down)),
        down=_module(model, down),
    )


def _parent(name: str) -> str:
    """Return the module above: ``a.b.weight`` → ``a``, and ``a.b`` → ``a``."""
    return name.removesuffix(".weight").rpartition(".")[0]


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
