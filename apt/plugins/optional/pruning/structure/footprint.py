"""Parameters and bytes of a cut model, told from the tensors of the dense one."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apt.checkpoint.architecture import Architecture
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.structure.surgery import cut_shape

if TYPE_CHECKING:
    from apt.checkpoint.reader import Checkpoint


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A stored tensor, or the same one of several layers: plans by the thousand are summed up over these.

    :param name: of the first of them.
    :param layers: ascending; empty outside the decoder's layers.
    """

    name: str
    shape: tuple[int, ...]
    layers: tuple[int, ...]
    value_bytes: float


@dataclass(frozen=True)
class Footprint:
    """What is stored of a model: embeddings, head and norms count, a tied head once.

    Layers are taken to be alike, as plans are: the first ones stand for those that stay.
    """

    architecture: Architecture
    tensors: tuple[_Tensor, ...]

    @classmethod
    def of_checkpoint(cls, checkpoint: "Checkpoint") -> "Footprint":
        """Read it off the headers of a checkpoint; every tensor keeps its dtype."""
        return cls._of(
            checkpoint.architecture,
            ((t.name, t.shape, t.size_bytes / max(1, t.elements)) for t in checkpoint.tensors.values()),
        )

    @classmethod
    def of_model(cls, model: Any, architecture: Architecture, value_bytes: int) -> "Footprint":
        """Read it off a transformers model that is stored with ``value_bytes`` bytes a value."""
        return cls._of(architecture, ((n, tuple(p.shape), float(value_bytes)) for n, p in model.named_parameters()))

    @classmethod
    def _of(cls, architecture: Architecture, tensors: Iterable[tuple[str, tuple[int, ...], float]]) -> "Footprint":
        found: dict[tuple[str, tuple[int, ...], float], tuple[str, list[int]]] = {}
        for name, shape, value_bytes in tensors:
            layer = architecture.layer_of(name)
            inner = name if layer is None else name.removeprefix(architecture.layer_prefix.format(layer))
            _, layers = found.setdefault((inner, tuple(shape), value_bytes), (name, []))
            layers += [] if layer is None else [layer]
        return cls(
            architecture,
            tuple(_Tensor(n, shape, tuple(sorted(ls)), size) for (_, shape, size), (n, ls) in found.items()),
        )

    def parameters(self, after: Sizes) -> int:
        """Return how many values a model of these sizes stores."""
        return sum(elements for elements, _ in self._left(after))

    def size_bytes(self, after: Sizes) -> int:
        """Return how many bytes its tensors take; headers of files come on top, some kilobytes."""
        return round(sum(elements * value_bytes for elements, value_bytes in self._left(after)))

    def _left(self, after: Sizes) -> Iterable[tuple[int, float]]:
        for tensor in self.tensors:
            count = bisect_left(tensor.layers, after.layers) if tensor.layers else 1
            if count:
                elements = math.prod(cut_shape(tensor.name, tensor.shape, self.architecture, after))
                yield count * elements, tensor.value_bytes
