"""The tensors that a config asks for, from the architecture's descriptor: names and legal shapes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.architecture import Architecture, LayerKind
from apt.checkpoint.architecture.shapes import RoleTensor, Shape, role_tensors
from apt.console.errors import BadInputError, shown

#: Configs that ask for more tensors are corrupted; mixtures of experts of a trillion parameters have some 100,000.
MOST_TENSORS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor's shape, and whether a checkpoint without it is whole."""

    shape: Shape
    optional: bool = False


def expected_tensors(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, ExpectedTensor]:
    """Return every tensor that transformers would look for, by name.

    A tied head is optional, every other tensor is needed.

    :raises BadInputError: when the config lacks a size, or asks for more tensors than any model has.
    """
    d = architecture.dimensions(config)
    found = {
        architecture.embedding: ExpectedTensor((d.vocab, d.hidden)),
        architecture.head: ExpectedTensor((d.vocab, d.hidden), optional=d.tied),
    }
    for other in architecture.other_embeddings:
        found[other] = ExpectedTensor((d.context, d.hidden))
    if architecture.final_norm:
        found[architecture.final_norm] = ExpectedTensor((d.hidden,))
        if architecture.layer_norm:
            found[architecture.final_norm.replace("weight", "bias")] = ExpectedTensor((d.hidden,))
    by_kind: dict[LayerKind, dict[str, RoleTensor]] = {}
    for layer, kind in enumerate(architecture.kinds(config, d.layers)):
        if kind not in by_kind:
            by_kind[kind] = role_tensors(architecture, config, d, kind)
        wanted = sum(tensor.copies for tensor in by_kind[kind].values())
        if len(found) + wanted > MOST_TENSORS:
            raise BadInputError(f"config.json asks for {shown(wanted)} tensors a layer, more than any model has")
        for role, tensor in by_kind[kind].items():
            found.update(_named(architecture, layer, role, tensor))
    return found


def _named(
    architecture: Architecture, layer: int, role: str, tensor: RoleTensor
) -> Iterator[tuple[str, ExpectedTensor]]:
    weight = architecture.layer_tensor(layer, role)
    numbered = "{}" in weight
    for copy in range(tensor.copies):
        yield weight.format(copy) if numbered else weight, ExpectedTensor(tensor.shape)
        if tensor.bias is not None:
            bias = architecture.layer_tensor(layer, role, "bias")
            yield bias.format(copy) if numbered else bias, ExpectedTensor(tensor.bias)
