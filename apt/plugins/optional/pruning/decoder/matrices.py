"""The linear matrices of a decoder layer in one form, whatever the family calls, fuses or transposes.

Every matrix is seen as ``[out, in]`` under the roles ``q k v o gate up down`` (no ``gate`` where the MLP has none).
A view shares its memory with the module, so that writing into it changes the layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from apt.checkpoint.architecture import Architecture, Dimensions

#: In the order in which the forward pass reaches them.
ROLES: Final = ("q", "k", "v", "o", "gate", "up", "down")

#: Fused role → its parts, in the order of their rows.
FUSED: Final[Mapping[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


@dataclass(frozen=True)
class Matrix:
    """One linear matrix of a layer, or the rows of a fused one.

    :param module: an ``nn.Linear`` or, when ``transposed``, GPT-2's ``Conv1D``, whose weight is [in, out].
    :param first: the first of its rows in the module; ``rows`` how many there are.
    """

    role: str
    module: nn.Module
    first: int
    rows: int
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """The weights [out, in]: a view without gradient; ``matrix.weight.copy_(new)`` changes the layer."""
        return self._view(self._parameter("weight").detach())

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the weights [out, in], a view; ``None`` when there is none."""
        gradient = self._parameter("weight").grad
        return None if gradient is None else self._view(gradient)

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], a view without gradient; ``None`` when there is none."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()[self.first : self.first + self.rows]

    def _parameter(self, name: str) -> Any:
        return getattr(self.module, name)

    def _stored(self, weight: Tensor) -> Tensor:
        return weight.T if self.transposed else weight

    def _view(self, weight: Tensor) -> Tensor:
        return self._stored(weight)[self.first : self.first + self.rows]


def matrices_of(layer: nn.Module, architecture: Architecture, sizes: Dimensions) -> dict[str, Matrix]:
    """Return the matrices of a decoder layer by role, in the order of :data:`ROLES`.

    A fused ``qkv`` whose rows alternate between heads cannot be split into views; it is given whole, as ``qkv``.

    :param layer: the decoder layer's module, alone or in its model.
    """
    found = {}
    for role, path in architecture.roles.items():
        if role in FUSED and not (role == "qkv" and architecture.qkv_by_head):
            first = 0
            for part in FUSED[role]:
                rows = _rows(part, sizes)
                found[part] = Matrix(part, layer.get_submodule(path), first, rows, architecture.transposed)
                first += rows
        elif role in ROLES or role in FUSED:
            found[role] = _whole(role, layer.get_submodule(path), transposed=architecture.transposed)
    order = (*ROLES, *FUSED)
    return {role: found[role] for role in sorted(found, key=order.index)}


def _whole(role: str, module: nn.Module, *, transposed: bool) -> Matrix:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return Matrix(role, module, 0, weight.shape[1 if transposed else 0], transposed)


def _rows(part: str, sizes: Dimensions) -> int:
    if part in ("gate", "up"):
        return sizes.ff
    return (sizes.heads if part == "q" else sizes.kv_heads) * sizes.head_dim
