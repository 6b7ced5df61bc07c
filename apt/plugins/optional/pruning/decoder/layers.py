"""Where decoder layers come from: a checkpoint, read one layer at a time, or a model in memory."""

import copy
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture
from apt.console.errors import BadInputError, shown
from apt.plugins.optional.pruning.decoder.frame import Frame, layers_path

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint

#: Roles of linear matrices, in the order in which a forward pass reaches them.
LINEAR_ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")


class LayerSource(Protocol):
    """What a walk through a decoder needs of a model."""

    architecture: Architecture
    config: dict[str, Any]
    layers: int

    def frame(self) -> Frame:
        """Return what is around the layers."""
        ...

    def layer(self, index: int, *, stored: bool = False) -> nn.Module:
        """Return a decoder layer with dense weights, to be changed at will.

        :param stored: linear weights keep the dtype they are stored in; the products are float32 all the same.
        """
        ...


class CheckpointLayers:
    """Layers of a checkpoint on disk. Nothing is held but what the caller holds.

    :raises UnsupportedError: when transformers cannot build the model.
    :raises BadInputError: when a tensor is missing, unexpected or of another shape than the config asks for.
    """

    def __init__(self, checkpoint: "Checkpoint") -> None:
        from apt.checkpoint.loading import empty_model

        self.architecture = checkpoint.architecture
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._model: Any = empty_model(checkpoint)
        self._empty = EmptyLayers(self._model, self.architecture)
        self.layers = len(self._empty)
        self._known = frozenset(self._model.state_dict())
        ignored = getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ()
        self._ignored = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
        embedding: Any = self._model.get_input_embeddings()
        self._vocabulary: int = embedding.weight.shape[0]
        self._check_layers()
        self._materialise_frame()

    def ignores(self, name: str) -> bool:
        """Whether a stored tensor is one that the model does without (masks and rotary tables of old checkpoints)."""
        return name not in self._known and bool(self._ignored.search(name))

    def names_of(self, index: int) -> list[str]:
        """Return the names of a layer's tensors, in the order of its modules.

        :raises BadInputError: when one is missing, or there is one that the model does not know.
        """
        prefix = self.architecture.layer_prefix.format(index)
        wanted = [prefix + name for name in self._empty.names(index)]
        self._check_names(wanted, [n for n in self._checkpoint.tensors if n.startswith(prefix)])
        return wanted

    def frame(self) -> Frame:
        """Return what is around the layers."""
        tensors, architecture = self._checkpoint.tensors, self.architecture
        head = architecture.head if architecture.head in tensors else architecture.embedding
        return Frame(
            self._model,
            architecture,
            vocabulary=self._vocabulary,
            gather=self._gather,
            head_rows=lambda start, stop: self._checkpoint.read_rows(head, start, stop).float(),
        )

    def layer(self, index: int, *, stored: bool = False) -> nn.Module:
        """Return a decoder layer with dense weights; see :class:`LayerSource`."""
        prefix = self.architecture.layer_prefix.format(index)
        names = self.names_of(index)
        return self._empty.filled(
            index, ((n.removeprefix(prefix), self._checkpoint.read(n)) for n in names), stored=stored
        )

    def _gather(self, ids: Tensor) -> Tensor:
        """Return rows of the embedding."""
        name = self.architecture.embedding
        return torch.cat([self._checkpoint.read_rows(name, i, i + 1) for i in ids.tolist()]).float()

    def _check_layers(self) -> None:
        """Hold every layer against the config before the first is read: hours of work may lie before the last."""
        layer_of, tensors = self.architecture.layer_of, self._checkpoint.tensors
        self._check_names((), [n for n in tensors if (layer := layer_of(n)) is not None and layer >= self.layers])
        for index in range(self.layers):
            prefix = self.architecture.layer_prefix.format(index)
            for name in self.names_of(index):
                self._check_shape(self._empty.shape(index, name.removeprefix(prefix)), name)

    def _materialise_frame(self) -> None:
        """Give the modules around the layers their weights, but for embedding and head."""
        held = {self.architecture.embedding, self.architecture.head}
        layers = f"{layers_path(self.architecture)}."
        wanted = [n for n in self._model.state_dict() if not n.startswith(layers)]
        there = [n for n in self._checkpoint.tensors if self.architecture.layer_of(n) is None]
        tied = self._model.config.tie_word_embeddings
        self._check_names([n for n in wanted if not (tied and n == self.architecture.head)], there)
        for name in wanted:
            self._check_shape(tuple(self._model.get_parameter(name).shape), name)
            if name not in held:
                _set(self._model, name, self._checkpoint.read(name).float())
        _fill_buffers(self._model, self._model, skip=layers)

    def _check_shape(self, wanted: tuple[int, ...], name: str) -> None:
        stored = self._checkpoint.tensors.get(name)
        if stored is not None and stored.shape != wanted:
            raise BadInputError(
                f"{self._checkpoint.path}: {shown(name)} is {list(stored.shape)}, the config asks for {list(wanted)}",
                hint="config.json and the weights are not of the same model",
            )

    def _check_names(self, wanted: Sequence[str], there: Sequence[str]) -> None:
        """Refuse what :meth:`Checkpoint.load` refuses.

        :raises BadInputError: naming the first tensor that is missing or unexpected.
        """
        missing = [n for n in wanted if n not in self._checkpoint.tensors]
        known = set(wanted) | {self.architecture.head}
        unexpected = [n for n in there if n not in known and not self.ignores(n)]
        for what, names in (("missing", missing), ("unexpected", unexpected)):
            if names:
                raise BadInputError(
                    f"{self._checkpoint.path}: {len(names)} {what} keys, the first {shown(names[0])}",
                    hint="config.json and the weights are not of the same model",
                )


class EmptyLayers:
    """The decoder layers of a model without weights, to be filled one at a time.

    :param model: a causal language model on the meta device.
    """

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self._model = model
        self._layers: Any = model.get_submodule(layers_path(architecture))

    def __len__(self) -> int:
        return len(self._layers)

    def names(self, index: int) -> list[str]:
        """Return the names of a layer's tensors, inside the layer."""
        return list(self._layers[index].state_dict())

    def shape(self, index: int, name: str) -> tuple[int, ...]:
        """Return the shape that the config gives a tensor."""
        return tuple(self._layers[index].state_dict()[name].shape)

    def filled(self, index: int, tensors: Iterable[tuple[str, Tensor]], *, stored: bool = False) -> nn.Module:
        """Return a layer with the given tensors as its weights, by their names inside the layer.

        :param stored: see :class:`LayerSource`.
        """
        layer: nn.Module = copy.deepcopy(self._layers[index])
        kept = _store_linears(layer) if stored else frozenset()
        for name, value in tensors:
            _set(layer, name, value if name in kept else value.float())
        _fill_buffers(self._model, layer)
        return layer.eval()


class ModelLayers:
    """Layers of a transformers model in memory, in float32 and evaluation mode; it is not changed."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self.architecture = architecture
        self.config: dict[str, Any] = model.config.to_dict()
        self._model = model
        self._layers: Any = model.get_submodule(layers_path(architecture))
        self.layers = len(self._layers)

    def frame(self) -> Frame:
        """Return what is around the layers."""
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        return Frame(self._model, self.architecture, vocabulary=vocabulary)

    def layer(self, index: int, *, stored: bool = False) -> nn.Module:
        """Return a copy of a layer."""
        layer: nn.Module = copy.deepcopy(self._layers[index])
        return layer


class _StoredLinear(nn.Linear):
    """A linear layer that keeps its weight as stored and multiplies in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)


def _store_linears(layer: nn.Module) -> frozenset[str]:
    """Let the linear modules of a layer keep stored weights; return the names of these."""
    names = []
    for path, module in layer.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = _StoredLinear
            names.append(f"{path}.weight")
    return frozenset(names)


def linear_modules(layer: nn.Module, architecture: Architecture) -> dict[str, nn.Module]:
    """Return the linear modules of a layer by role, in the order in which the forward pass reaches them."""
    roles = architecture.roles
    return {role: layer.get_submodule(roles[role]) for role in LINEAR_ROLES if role in roles}


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of one without data."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    setattr(owner, attribute, nn.Parameter(value, requires_grad=False) if attribute in owner._parameters else value)


def _fill_buffers(model: Any, module: nn.Module, *, skip: str = "\0") -> None:
    """Compute what is not stored (rotary tables, scales) as the family's own code does.

    :param skip: modules whose path begins so are left alone.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # what transformers' code looks for
    for path, inner in module.named_modules():
        empty = [name for name, buffer in inner.named_buffers(recurse=False) if buffer.is_meta]
        if not empty or path.startswith(skip):
            continue
        for name in empty:
            setattr(inner, name, torch.empty_like(getattr(inner, name), device="cpu"))
        model._init_weights(inner)
