"""What ``size`` tells: where a model's bytes are, what they become as GGUF, and what fits in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apt.checkpoint.architecture import Architecture, descriptor
from apt.checkpoint.architecture.cache import sequence_cache
from apt.checkpoint.capacity import KV_BYTES_PER_VALUE
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.gguf_prediction import predict_gguf_bytes
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import (
    Format,
    TensorGroup,
    display_name,
    gguf_config,
    layer_function,
    open_model,
    precisions,
    sums_by_key,
    tensor_groups,
)  # fmt: skip
from apt.console.errors import BadInputError, UnsupportedError
from apt.console.table import Table
from apt.console.units import format_bytes, format_count
from apt.store import resolve

#: Contexts and batches of the memory table when none are asked for; contexts beyond the model's are left out.
CONTEXTS: Final = (2_048, 8_192, 32_768, 131_072)
BATCHES: Final = (1, 8, 32)
#: No search for the largest context or batch goes beyond this.
_LARGEST: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryCell:
    """Memory for one precision, context and batch; ``fits`` is ``None`` without a limit."""

    precision: str
    context_tokens: int
    batch_rows: int
    weight_bytes: int
    kv_bytes: int
    total_bytes: int
    fits: bool | None


@dataclass(frozen=True, slots=True)
class Room:
    """What a memory limit leaves for a precision.

    :param longest_context_tokens: of one sequence, at most the model's context; 0 when the weights alone do not fit.
    :param largest_batch_rows: of sequences as long as the model's context, or the longest context asked for.
    """

    precision: str
    weight_bytes: int
    weights_fit: bool
    longest_context_tokens: int
    largest_batch_rows: int
    batch_context_tokens: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # methods that nobody calls take milliseconds to make
class SizeFacts:
    """Where a model's bytes are.

    :param size_bytes: bytes of the weight files, headers included.
    :param tensor_bytes: bytes of the tensors alone; the groups add up to it.
    :param bytes_by_layer: by the layer's number, ``outside`` for what is in none; empty for an unknown family.
    :param gguf_bytes: predicted bytes of each kind of GGUF; empty for a GGUF, for an unknown family and where
        config or tokenizer cannot be read.
    :param memory: cache and weights over contexts and batches; empty where the cache's size is not known.
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
    bytes_by_layer: dict[str, int]
    gguf_bytes: dict[str, int]
    memory: tuple[MemoryCell, ...]
    memory_limit_bytes: int | None
    room: tuple[Room, ...]

    def tables(self) -> list[Table]:
        """Return the groups and their sum, layers, GGUF sizes, memory and what fits."""
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
        tables = [Table(title, ("component", "dtype", "tensors", "parameters", "bytes", "share"), rows)]
        if self.bytes_by_layer:
            tables.append(Table("Layers", ("layers", "bytes each"), _runs(self.bytes_by_layer)))
        if self.gguf_bytes:
            predicted = [[kind, format_count(n), format_bytes(n)] for kind, n in self.gguf_bytes.items()]
            tables.append(Table("As GGUF, predicted", ("type", "bytes", "size"), predicted))
        if self.memory:
            tables.append(self._memory_table())
        if self.room:
            tables.append(self._room_table())
        return tables

    def _memory_table(self) -> Table:
        mark = {None: "", True: " fits", False: " no"}
        names = list(dict.fromkeys(cell.precision for cell in self.memory))
        rows: dict[tuple[int, int], list[str]] = {}
        for cell in self.memory:
            row = rows.setdefault((cell.context_tokens, cell.batch_rows), [format_bytes(cell.kv_bytes)])
            row.append(format_bytes(cell.total_bytes) + mark[cell.fits])
        shown = [[format_count(context), str(batch), *cells] for (context, batch), cells in rows.items()]
        return Table("Memory: weights and cache", ("context", "batch", "cache", *names), shown)

    def _room_table(self) -> Table:
        context = self.room[0].batch_context_tokens
        rows = [
            [
                r.precision,
                format_bytes(r.weight_bytes),
                "yes" if r.weights_fit else "no",
                format_count(r.longest_context_tokens),
                str(r.largest_batch_rows),
            ]
            for r in self.room
        ]
        columns = ("precision", "weights", "weights fit", "longest context", f"rows of {format_count(context)} tokens")
        return Table(f"What fits in {format_bytes(self.memory_limit_bytes or 0)}", columns, rows)

    def _share(self, group: TensorGroup) -> str:
        return f"{100 * group.size_bytes / max(1, self.tensor_bytes):.1f} %"


def size_facts(
    ref: str, *, contexts: Sequence[int] = (), batches: Sequence[int] = (), memory_bytes: int | None = None
) -> SizeFacts:
    """Read where the bytes of a model are; errors as :func:`apt.checkpoint.sizes.open_model`.

    :param contexts, batches: of the memory table; usual ones when empty.
    :param memory_bytes: a limit; the result then says what fits in it.
    """
    model = open_model(ref)
    groups = tensor_groups(model)
    weights = precisions(model)
    cells, room = _memory(model, weights, contexts, batches, memory_bytes)
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
        bytes_by_layer=_by_layer(model),
        gguf_bytes=_gguf_bytes(model),
        memory=cells,
        memory_limit_bytes=memory_bytes,
        room=room,
    )


def _by_layer(model: Checkpoint | GGUFFile) -> dict[str, int]:
    layer_of = layer_function(model)
    sums: dict[int | None, int] = {}
    for name, tensor in model.tensors.items():
        layer = layer_of(name)
        sums[layer] = sums.get(layer, 0) + tensor.size_bytes
    if set(sums) <= {None}:
        return {}
    layers = sorted(layer for layer in sums if layer is not None)
    return {str(layer): sums[layer] for layer in layers} | ({"outside": sums[None]} if None in sums else {})


def _gguf_bytes(model: Checkpoint | GGUFFile) -> dict[str, int]:
    if isinstance(model, GGUFFile) or model.config.get("quantization_config"):
        return {}
    try:
        return predict_gguf_bytes(model)
    except (UnsupportedError, BadInputError):
        return {}


def _memory(
    model: Checkpoint | GGUFFile,
    weights: dict[str, int],
    contexts: Sequence[int],
    batches: Sequence[int],
    limit: int | None,
) -> tuple[tuple[MemoryCell, ...], tuple[Room, ...]]:
    config = gguf_config(model) if isinstance(model, GGUFFile) else model.config
    try:
        architecture = descriptor(config or {}, where=str(model.path))
        own = architecture.dimensions(config or {}).context
        asked = contexts or [n for n in CONTEXTS if n < own] + [min(own, max(CONTEXTS))]
        caches = {n: _row_bytes(architecture, config or {}, n) for n in dict.fromkeys(asked)}
    except (UnsupportedError, BadInputError):
        return (), ()
    cells = tuple(
        MemoryCell(name, n, b, size, kv * b, size + kv * b, None if limit is None else size + kv * b <= limit)
        for n, kv in caches.items()
        for b in batches or BATCHES
        for name, size in weights.items()
    )
    if limit is None:
        return cells, ()
    longest = max(contexts) if contexts else own
    return cells, tuple(_room(architecture, config or {}, name, size, limit, longest) for name, size in weights.items())


def _room(
    architecture: Architecture, config: dict[str, object], name: str, size: int, limit: int, longest: int
) -> Room:
    free = limit - size
    if free < 0:
        return Room(name, size, False, 0, 0, longest)
    low, high = 0, longest
    while low < high:  # the cache never shrinks with the context
        middle = (low + high + 1) // 2
        if _row_bytes(architecture, config, middle) <= free:
            low = middle
        else:
            high = middle - 1
    row = _row_bytes(architecture, config, longest)
    return Room(name, size, True, low, min(free // max(1, row), _LARGEST), longest)


def _row_bytes(architecture: Architecture, config: dict[str, object], tokens: int) -> int:
    return sequence_cache(architecture, config, tokens).size_bytes(KV_BYTES_PER_VALUE)


def _runs(bytes_by_layer: dict[str, int]) -> list[list[str]]:
    """Put layers of equal size that follow one another into one row."""
    runs: list[tuple[str, str, int]] = []
    for layer, size in bytes_by_layer.items():
        if runs and runs[-1][2] == size and layer != "outside":
            runs[-1] = (runs[-1][0], layer, size)
        else:
            runs.append((layer, layer, size))
    return [[first if first == last else f"{first}–{last}", format_count(size)] for first, last, size in runs]
