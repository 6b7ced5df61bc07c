"""A smaller student made of its teacher: evenly chosen layers, and of each layer the parts that carry most.

Hidden values, heads and ff channels are chosen by the energy (sum of squared weights) that they carry; each layer keeps
its own heads and channels, all layers the same hidden values.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.architecture.alignment import alignment
from apt.checkpoint.architecture.thinning import thinned
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError, UsageError
from apt.registry import did_you_mean

#: Sizes by the names that ``--student-shape`` gives them, and the standard config key of each.
KEYS: Final[Mapping[str, str]] = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ff": "intermediate_size",
}
#: Roles that a layer must have for its widths to be cut.
_WIDE_ROLES: Final = frozenset({"q", "k", "v", "o", "up", "down"})
_HIDDEN_NORMS: Final = ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a student may have fewer of; the size of a head stays."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ff: int

    def describe(self) -> str:
        """Return the sizes as ``--student-shape`` takes them."""
        return ",".join(f"{name}={value}" for name, value in asdict(self).items())

    def widths(self) -> tuple[int, ...]:
        """All sizes but the number of layers."""
        return self.hidden, self.heads, self.kv_heads, self.ff


def shape_of(teacher: Checkpoint) -> Shape:
    """Return a checkpoint's own shape.

    :raises UnsupportedError: for a family without a descriptor, or whose layers differ.
    """
    teacher.architecture.check_uniform("a student's shape")
    d = teacher.architecture.dimensions(teacher.config)
    return Shape(d.layers, d.hidden, d.heads, d.kv_heads, d.ff)


def parse_shape(text: str, teacher: Checkpoint) -> Shape:
    """Return the shape that a text asks for.

    ``0.5x`` keeps at most half of the linear weights of the layers: as few layers as that takes, and if their number
    is not even, narrower ff. ``layers=4,hidden=256`` names sizes; what is not named stays, query heads follow KV heads.

    :raises UsageError: when the text asks for something else, or for sizes that the family does not have.
    """
    whole = shape_of(teacher)
    if match := re.fullmatch(r"(\d*\.?\d+)x", text.strip()):
        shape = _share(float(match[1]), whole, teacher)
    else:
        shape = _named(text, whole)
    _check(shape, whole, teacher)
    return shape


def _share(share: float, whole: Shape, teacher: Checkpoint) -> Shape:
    if not 0.0 < share < 1.0:
        raise UsageError(f"--student-shape {share:g}x: a share between 0 and 1 is needed")
    family = teacher.architecture
    layers = math.ceil(whole.layers * share)
    allowed = whole.layers * share / layers  # of a layer's weights
    if allowed < 1.0 and family.roles.keys() >= _WIDE_ROLES and not family.transposed:
        matrices = 3 if "gate" in family.roles else 2
        head_dim = family.dimensions(teacher.config).head_dim
        attention = 2 * head_dim * (whole.heads + whole.kv_heads)
        step = alignment(whole.ff)
        ff = int((allowed * (attention + matrices * whole.ff) - attention) / matrices) // step * step
        if ff > 0:
            return Shape(layers, whole.hidden, whole.heads, whole.kv_heads, ff)
    layers = math.floor(whole.layers * share)
    if layers < 1:
        raise UsageError(f"--student-shape {share:g}x leaves no layer of {teacher.name}", hint="name sizes: ff=128")
    return Shape(layers, *whole.widths())


def _named(text: str, whole: Shape) -> Shape:
    given: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in KEYS:
            hint = did_you_mean(name, KEYS) if name else "0.5x, or sizes: layers=4,hidden=256"
            raise UsageError(f"--student-shape: {part.strip()!r} names no size", hint=hint)
        if not re.fullmatch(r"[0-9]{1,9}", value) or name in given:
            raise UsageError(f"--student-shape: {part.strip()!r} is no whole number, or named twice")
        given[name] = int(value)
    group = whole.heads // whole.kv_heads
    if "kv_heads" in given and "heads" not in given:
        given["heads"] = given["kv_heads"] * group
    elif "heads" in given and "kv_heads" not in given:
        given["kv_heads"] = max(1, given["heads"] // group)
    return Shape(**{**asdict(whole), **given})


def _check(shape: Shape, whole: Shape, teacher: Checkpoint) -> None:
    """Refuse sizes that are no part of the teacher's, or that a stock config of the family refuses."""
    for name, most in asdict(whole).items():
        if not 1 <= getattr(shape, name) <= most:
            raise UsageError(f"--student-shape: {name}={getattr(shape, name)} is not between 1 and {most}")
    family = teacher.architecture
    group = whole.heads // whole.kv_heads
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > group:
        raise UsageError(
            f"--student-shape: {shape.heads} heads do not fall evenly on {shape.kv_heads} KV heads, "
            f"at most {group} on each"
        )
    if family.heads_divide_hidden and shape.hidden % shape.heads:
        near = max(1, shape.hidden // shape.heads) * shape.heads
        raise UsageError(
            f"--student-shape: hidden={shape.hidden} is no multiple of the {shape.heads} heads",
            hint=f"hidden={near}",
        )
    if shape == whole:
        raise UsageError("--student-shape: the student would be as large as its teacher")
    narrower = shape.widths() != whole.widths()
    if narrower and (family.transposed or not family.roles.keys() >= _WIDE_ROLES):
        raise UnsupportedError(
            f"layers of {family.model_type!r} cannot be made narrower here", hint="--student-shape layers=N"
        )


def kept_layers(layers: int, of: int) -> list[int]:
    """Return the teacher's layers that the student begins as: the first, the last, and evenly those between."""
    if layers == 1:
        return [0]
    return [round(i * (of - 1) / (layers - 1)) for i in range(layers)]


def initialise(teacher: Any, architecture: Architecture, shape: Shape, whole: Shape) -> Any:
    """Return a new model of that shape, made of a teacher in memory and in its dtype, in evaluation mode.

    :raises UnsupportedError: when the family's stock config has no place for the sizes.
    """
    layers = kept_layers(shape.layers, whole.layers)
    config = thinned(teacher.config.to_dict(), layers, layers=whole.layers)
    head_dim = architecture.dimensions(config).head_dim
    for name, key in KEYS.items():
        if architecture.key(key) in config and config[architecture.key(key)] is not None:
            config[architecture.key(key)] = getattr(shape, name)
    if shape.widths() != whole.widths():
        config["head_dim"] = head_dim
    student = type(teacher)._from_config(type(teacher.config).from_dict(config), dtype=teacher.dtype)
    tensors = dict(_Cut(architecture, shape, whole, head_dim, teacher.state_dict()).tensors(layers))
    try:
        student.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UnsupportedError(f"{architecture.model_type!r} has no student of the shape {shape.describe()}") from error
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.eval()


class _Cut:
    """Which of the teacher's values stay, and its tensors without the others."""

    def __init__(
        self, architecture: Architecture, shape: Shape, whole: Shape, head_dim: int, tensors: Mapping[str, Tensor]
    ) -> None:
        self._family, self._shape, self._whole, self._dim = architecture, shape, whole, head_dim
        self._tensors = tensors
        self._hidden = self._strongest(self._hidden_energy(), shape.hidden) if shape.hidden < whole.hidden else None

    def tensors(self, layers: list[int]) -> Iterator[tuple[str, Tensor]]:
        """Yield the student's tensors by name."""
        places = {layer: place for place, layer in enumerate(layers)}
        chosen = {layer: self._choose(layer) for layer in layers}
        for name, tensor in self._tensors.items():
            layer = self._family.layer_of(name)
            if layer is None:
                yield name, self._outside(tensor)
            elif layer in places:
                inner = name.removeprefix(self._family.layer_prefix.format(layer))
                renamed = self._family.layer_prefix.format(places[layer]) + inner
                yield renamed, self._inside(name, tensor, chosen[layer])

    def _outside(self, tensor: Tensor) -> Tensor:
        """Embeddings, the head and the last norm have the hidden values last, a bias of the head has none."""
        return self._take(tensor, -1, self._hidden) if tensor.shape[-1] == self._whole.hidden else tensor

    def _inside(self, name: str, tensor: Tensor, chosen: Mapping[str, Tensor | None]) -> Tensor:
        role = self._family.role_of(name) or ""
        if role in _HIDDEN_NORMS:
            return self._take(tensor, 0, self._hidden)
        if role in ("q_norm", "k_norm"):
            return self._take(tensor, 0, chosen[role[0]]) if self._family.norms_over_all_heads else tensor
        if role in ("q", "k", "v", "gate", "up"):
            rows = self._take(tensor, 0, chosen[role])
            return rows if rows.ndim == 1 else self._take(rows, 1, self._hidden)
        if role in ("o", "down"):
            rows = self._take(tensor, 0, self._hidden)
            return rows if rows.ndim == 1 else self._take(rows, 1, chosen[role])
        if self._shape.widths() != self._whole.widths():
            raise UnsupportedError(f"there is no rule to cut the tensor {name!r}")
        return tensor

    def _choose(self, layer: int) -> dict[str, Tensor | None]:
        """Which rows or columns of each role stay in a layer; ``None`` for all."""
        shape, whole, dim = self._shape, self._whole, self._dim
        chosen: dict[str, Tensor | None] = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"))
        if shape.ff < whole.ff:
            energy = self._weight(layer, "down").square().sum(0) * self._weight(layer, "up").square().sum(1)
            chosen |= dict.fromkeys(("gate", "up", "down"), self._strongest(energy, shape.ff))
        if (shape.heads, shape.kv_heads) != (whole.heads, whole.kv_heads):
            energy = self._weight(layer, "o").square().sum(0).view(whole.kv_heads, -1, dim).sum(-1)
            groups = self._strongest(energy.sum(-1), shape.kv_heads)
            per = shape.heads // shape.kv_heads
            queries = torch.cat([g * energy.shape[1] + self._strongest(energy[g], per) for g in groups.tolist()])
            chosen |= dict.fromkeys("qo", self._values(queries)) | dict.fromkeys("kv", self._values(groups))
        return chosen

    def _values(self, heads: Tensor) -> Tensor:
        return (heads[:, None] * self._dim + torch.arange(self._dim)).flatten()

    def _hidden_energy(self) -> Tensor:
        """What is written to each hidden value: by the embedding, and by each layer's attention and MLP."""
        energy = self._tensors[self._family.embedding].float().square().sum(0)
        for layer in range(self._whole.layers):
            for role in ("o", "down"):
                energy = energy + self._weight(layer, role).square().sum(1)
        return energy

    def _weight(self, layer: int, role: str) -> Tensor:
        return self._tensors[self._family.layer_tensor(layer, role)].float()

    @staticmethod
    def _strongest(energy: Tensor, count: int) -> Tensor:
        """Numbers of the ``count`` largest, ascending."""
        return energy.argsort(descending=True, stable=True)[:count].sort().values

    @staticmethod
    def _take(tensor: Tensor, axis: int, kept: Tensor | None) -> Tensor:
        return tensor if kept is None else tensor.index_select(axis, kept).contiguous()
