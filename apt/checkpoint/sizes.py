"""Bytes of a model by component and dtype, of either format, from its headers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError
from apt.console.table import Table
from apt.console.units import format_bytes, format_count
from apt.store import resolve

Format = Literal["safetensors", "gguf"]

#: Components in the order they are shown.
COMPONENTS: Final = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one component and one dtype."""

    component: str
    dtype: str
    tensors: int
    parameters: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SizeFacts:
    """What ``size`` tells.

    :param size_bytes: bytes of the weight files, headers included.
    :param tensor_bytes: bytes of the tensors alone; the groups add up to it.
    """

    name: str
    path: Path
    format: Format
    parameters: int
    size_bytes: int
    tensor_bytes: int
    groups: tuple[TensorGroup, ...]
    bytes_by_component: dict[str, int]
    bytes_by_dtype: dict[str, int]

    def tables(self) -> list[Table]:
        """Return the groups and their sum."""
        rows = [
            [
                g.component,
                g.dtype,
                str(g.tensors),
                format_count(g.parameters),
                format_count(g.size_bytes),
                self._share(g),
            ]
            for g in self.groups
        ]
        tensors = sum(g.tensors for g in self.groups)
        rows.append(
            ["all", "", str(tensors), format_count(self.parameters), format_count(self.tensor_bytes), "100.0 %"]
        )
        title = f"{self.name}: {format_bytes(self.size_bytes)} on disk"
        return [Table(title, ("component", "dtype", "tensors", "parameters", "bytes", "share"), rows)]

    def _share(self, group: TensorGroup) -> str:
        return f"{100 * group.size_bytes / max(1, self.tensor_bytes):.1f} %"


def open_model(ref: str) -> Checkpoint | GGUFFile:
    """Open a model of either format by its headers.

    :raises NotFoundError: when there is none; :raises BadInputError: when it is corrupted.
    """
    path = resolve(ref)
    if path.is_file() and path.suffix == ".gguf":
        return GGUFFile.open(path)
    return Checkpoint.open(ref)


def display_name(ref: str, path: Path) -> str:
    """Return the name people know a model by: a Hub reference keeps its own, a path has its last part."""
    return ref if ref.startswith("hf:") or not path.resolve().name else path.resolve().name


def size_facts(ref: str) -> SizeFacts:
    """Read the bytes of a model by component and dtype; errors as :func:`open_model`."""
    model = open_model(ref)
    groups = tensor_groups(model)
    return SizeFacts(
        name=display_name(ref, resolve(ref)),
        path=model.path,
        format="gguf" if isinstance(model, GGUFFile) else "safetensors",
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        tensor_bytes=sum(g.size_bytes for g in groups),
        groups=groups,
        bytes_by_component=sums_by_key((g.component, g.size_bytes) for g in groups),
        bytes_by_dtype=sums_by_key((g.dtype, g.size_bytes) for g in groups),
    )


def tensor_groups(model: Checkpoint | GGUFFile) -> tuple[TensorGroup, ...]:
    """Sum a model's tensors by component and dtype, components in their order, larger dtypes first.

    Where no descriptor knows the architecture, every tensor's component is ``unknown``.
    """
    rows: list[tuple[str, str, int, int]] = []
    if isinstance(model, GGUFFile):
        rows = [(gguf_component(t.name), t.type, t.parameters, t.size_bytes) for t in model.tensors.values()]
    else:
        component = _component_function(model)
        rows = [(component(t.name), t.dtype, t.elements, t.size_bytes) for t in model.tensors.values()]
    sums: dict[tuple[str, str], list[int]] = {}
    for part, dtype, parameters, size in rows:
        entry = sums.setdefault((part, dtype), [0, 0, 0])
        for i, n in enumerate((1, parameters, size)):
            entry[i] += n
    order = {part: i for i, part in enumerate(COMPONENTS)}
    groups = [TensorGroup(part, dtype, *entry) for (part, dtype), entry in sums.items()]
    return tuple(sorted(groups, key=lambda g: (order.get(g.component, len(order)), -g.size_bytes, g.dtype)))


_LAYER_NORMS: Final = re.compile(
    r"blk\.\d+\.(?:attn|ffn|post_attention|post_ffw|layer_out)(?:_[qk]|_output|_post)?_norm(?:_2)?\."
)
_LAYER_ATTENTION: Final = re.compile(r"blk\.\d+\.attn_")
_LAYER_MLP: Final = re.compile(r"blk\.\d+\.ffn_")


def gguf_component(tensor: str) -> str:
    """Return the component of a GGUF tensor, by llama.cpp's names."""
    if tensor.startswith(("token_embd.", "position_embd.", "token_types.")):
        return "embedding"
    if tensor.startswith("output."):
        return "head"
    if tensor.startswith(("output_norm.", "token_embd_norm.")) or _LAYER_NORMS.match(tensor):
        return "norm"
    if _LAYER_ATTENTION.match(tensor):
        return "attention"
    return "mlp" if _LAYER_MLP.match(tensor) else "other"


def _component_function(checkpoint: Checkpoint) -> Any:
    try:
        return checkpoint.architecture.component_of
    except UnsupportedError:
        return lambda _: "unknown"


def sums_by_key(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sum the numbers of equal keys, keys in the order of their first coming."""
    sums: dict[str, int] = {}
    for key, n in pairs:
        sums[key] = sums.get(key, 0) + n
    return sums
