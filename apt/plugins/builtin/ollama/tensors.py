"""Tensor values between the two files: read in row chunks, reordered for llama.cpp's RoPE, encoded, decoded.

Memory is bounded by :data:`CHUNK_VALUES`, whatever the tensor's size.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.safetensors_header import TensorInfo
from apt.console.errors import BadInputError
from apt.plugins.builtin.ollama.mapping import PlannedTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TensorType = Literal["F32", "F16", "BF16", "Q8_0"]

#: Values held in memory at a time (16 MiB as f32), rounded to whole rows or heads.
CHUNK_VALUES: Final = 4 << 20
#: Values in a Q8_0 block: one f16 scale and 32 bytes.
Q8_0_BLOCK: Final = 32
Q8_0_BLOCK_BYTES: Final = 34
#: An output head with shorter rows stays f16. A logit is then a sum of so few products that q8_0's rounding (of the
#: weights and, in llama.cpp, of the activations) does not average out: with rows of 64 it turned 1.8 % of the most
#: likely tokens of a trained model of 260,000 parameters, with this tensor in f16 1.4 %.
MIN_HEAD_ROW: Final = 128
_HEADS: Final = frozenset({"token_embd.weight", "output.weight"})
#: The smallest magnitude that rounds to infinity in f16.
F16_OVERFLOW: Final = 65520.0


def source_chunks(checkpoint: Checkpoint, tensor: PlannedTensor) -> "Iterator[Floats]":
    """Yield the tensor's rows as llama.cpp wants them, f32 ``[rows of the chunk, row length]``.

    :raises BadInputError: when the weight file ends early.
    """
    import numpy as np

    info = checkpoint.tensors[tensor.source]
    # A bias of a rotary projection is reordered as a column: one value a row.
    row_length = 1 if tensor.heads and not tensor.is_matrix else tensor.row_length
    rows = int(np.prod(tensor.shape, dtype=np.int64)) // row_length
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(1, CHUNK_VALUES // (row_length * unit)) * unit
    with info.path.open("rb") as stream:
        for first in range(0, rows, step):
            count = min(step, rows - first)
            value_bytes = 4 if info.dtype == "F32" else 2
            stream.seek(info.start + first * row_length * value_bytes)
            raw = stream.read(count * row_length * value_bytes)
            if len(raw) != count * row_length * value_bytes:
                raise BadInputError(f"{info.path} is truncated inside {tensor.source!r}")
            chunk = _to_f32(raw, info).reshape(count, row_length)
            if tensor.heads:
                chunk = interleave_halves(chunk, unit)
            yield chunk if row_length == tensor.row_length else chunk.reshape(1, -1)


def _to_f32(raw: bytes, info: TensorInfo) -> "Floats":
    import numpy as np

    if info.dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f2" if info.dtype == "F16" else "<f4").astype(np.float32)


def interleave_halves(rows: "Floats", head_dim: int) -> "Floats":
    """Reorder the rows of whole heads from transformers' RoPE layout to llama.cpp's.

    transformers rotates value *i* of a head with value *i + head_dim/2*, llama.cpp's ``llama`` values *2i* and
    *2i + 1*; so rows ``0, d/2, 1, d/2 + 1, …`` follow one another.

    :param rows: ``[heads * head_dim, row length]``.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[-1])
    result: Floats = halves.swapaxes(1, 2).reshape(rows.shape)
    return result


def largest_magnitude(checkpoint: Checkpoint, tensor: PlannedTensor) -> float:
    """Return the largest absolute value.

    :raises BadInputError: naming the tensor when a value is NaN or infinite.
    """
    import numpy as np

    largest = 0.0
    for chunk in source_chunks(checkpoint, tensor):
        found = float(np.abs(chunk).max(initial=0.0))
        if not np.isfinite(found):
            raise BadInputError(
                f"{checkpoint.path}: {tensor.source!r} has values that are not finite",
                hint="a GGUF of it would compute nonsense",
            )
        largest = max(largest, found)
    return largest


def choose_type(tensor: PlannedTensor, wanted: TensorType, largest: float) -> tuple[TensorType, str]:
    """Return the type that the tensor is stored in and, when it is not the wanted one, why.

    Norms and biases are f32 always, as everywhere in GGUF, and without a reason.
    """
    if not tensor.is_matrix:
        return "F32", ""
    reason = ""
    if wanted == "Q8_0":
        if tensor.row_length % Q8_0_BLOCK:
            reason = f"rows of {tensor.row_length} values are no multiple of {Q8_0_BLOCK}"
        elif tensor.name in _HEADS and tensor.row_length < MIN_HEAD_ROW:
            reason = f"rows of {tensor.row_length} values are too short for logits in q8_0"
        elif largest / 127 >= F16_OVERFLOW:
            reason = f"values up to {largest:.4g} are beyond q8_0's f16 scale"
        else:
            return "Q8_0", ""
        wanted = "F16"
    if wanted == "F16" and largest >= F16_OVERFLOW:
        return "F32", reason or f"values up to {largest:.4g} are beyond f16"
    return wanted, reason


def stored_bytes(tensor: PlannedTensor, kind: TensorType) -> int:
    """Return the size of the tensor's data in the GGUF, without padding."""
    values = tensor.rows * tensor.row_length
    if kind == "Q8_0":
        return values // Q8_0_BLOCK * Q8_0_BLOCK_BYTES
    return values * (4 if kind == "F32" else 2)


def encode(values: "Floats", kind: TensorType) -> bytes:
    """Encode rows in a GGUF type; f16 and bf16 round to nearest even."""
    import numpy as np

    if kind == "F32":
        return values.astype("<f4").tobytes()
    if kind == "F16":
        return values.astype("<f2").tobytes()
    from gguf import GGMLQuantizationType, quants

    # The inverse of the scale of a block below 1e-36 overflows inside gguf; its f16 scale is 0, and so are its values.
    with np.errstate(over="ignore", invalid="ignore"):
        quantized: NDArray[np.uint8] = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType[kind])
    return quantized.tobytes()
