"""Is the file what the checkpoint says? Every tensor and every metadata value, without llama.cpp.

The values are decoded here from raw bytes and not by the code that encoded them.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.gguf import GGUFFile, GGUFTensor
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import CheckFailedError, UnsupportedError
from apt.console.progress import progress
from apt.plugins.builtin.ollama.export import ROPE_FACTORS
from apt.plugins.builtin.ollama.mapping import (
    PlannedTensor,
    check_config,
    model_metadata,
    plan_tensors,
    rotary_scaling,
)
from apt.plugins.builtin.ollama.results import TensorCheck
from apt.plugins.builtin.ollama.tensors import Q8_0_BLOCK, Q8_0_BLOCK_BYTES, source_chunks
from apt.plugins.builtin.ollama.tokenizer import read_vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Relative rounding of a normal f16, and absolute rounding of a subnormal one.
_F16_RELATIVE: Final = 2.0**-11
_F16_ABSOLUTE: Final = 2.0**-25
#: The encoder divides and multiplies in f32: a few of its roundings, relative to a block's largest value.
_F32_SLACK: Final = 2.0**-21
_BYTES_PER_VALUE: Final = {"F32": 4, "F16": 2, "BF16": 2}


def check_file(checkpoint: Checkpoint, gguf: GGUFFile) -> TensorCheck:
    """Compare the file with the checkpoint, tensors and metadata.

    :raises CheckFailedError: naming the first tensor or value that differs.
    """
    sizes = check_config(checkpoint)
    vocabulary = read_vocabulary(checkpoint, sizes.vocab)
    expected: dict[str, Any] = {**model_metadata(checkpoint, sizes, ""), **vocabulary.metadata()}
    del expected["general.name"]  # the user's to choose
    expected["general.architecture"] = checkpoint.architecture.gguf_name
    _check_metadata(gguf, expected)
    plan = {tensor.name: tensor for tensor in plan_tensors(checkpoint, sizes)}
    factors = rotary_scaling(checkpoint, sizes).factors
    _check_names(gguf, set(plan) | ({ROPE_FACTORS} if factors else set()))
    _check_with_gguf_package(gguf)
    exact, bounded, largest = 0, 0, 0.0
    if factors:
        if gguf.read_bytes(ROPE_FACTORS) != struct.pack(f"<{len(factors)}f", *factors):
            raise CheckFailedError(f"{gguf.path}: {ROPE_FACTORS!r} does not hold the config's RoPE factors")
        exact += 1
    with progress("comparing tensors", len(plan), "tensors") as bar:
        for name, source in plan.items():
            stored = gguf.tensors[name]
            if stored.shape != source.shape:
                raise CheckFailedError(f"{gguf.path}: {name!r} has shape {stored.shape}, not {source.shape}")
            if stored.type == "Q8_0":
                largest = max(largest, _check_q8_0(checkpoint, source, gguf, stored))
                bounded += 1
            else:
                _check_exact(checkpoint, source, gguf, stored)
                exact += 1
            bar.advance()
    return TensorCheck(exact + bounded, exact, bounded, largest)


def _check_names(gguf: GGUFFile, expected: set[str]) -> None:
    for name in sorted(expected ^ set(gguf.tensors)):
        state = "is missing" if name in expected else "does not belong to the checkpoint"
        raise CheckFailedError(f"{gguf.path}: the tensor {name!r} {state}")


def _check_metadata(gguf: GGUFFile, expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        found = gguf.metadata.get(key)
        if isinstance(found, array):
            found = found.tolist()
        if isinstance(value, float):
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        elif isinstance(value, list) and value and isinstance(value[0], float):
            value = array("f", value).tolist()
        if found != value:
            shown = "other values" if isinstance(value, list) else f"{found!r}, not {value!r}"
            raise CheckFailedError(f"{gguf.path}: metadata {key!r} is {shown}")


def _check_with_gguf_package(gguf: GGUFFile) -> None:
    """Let the ``gguf`` package read the file too; both readers must see the same tensors."""
    from gguf import GGUFReader

    seen = {
        t.name: (t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), int(t.data_offset), int(t.n_bytes))
        for t in GGUFReader(gguf.path).tensors
    }
    own = {t.name: (t.type, t.shape, t.start, t.size_bytes) for t in gguf.tensors.values()}
    if seen != own:
        raise CheckFailedError(f"{gguf.path}: the gguf package reads another tensor table than this one")


def _stored_chunks(gguf: GGUFFile, tensor: GGUFTensor, chunks: "Iterator[Floats]") -> "Iterator[tuple[Floats, bytes]]":
    """Pair the source's row chunks with the stored bytes of the same rows."""
    with gguf.path.open("rb") as stream:
        stream.seek(tensor.start)
        for chunk in chunks:
            if tensor.type == "Q8_0":
                size = chunk.size // Q8_0_BLOCK * Q8_0_BLOCK_BYTES
            else:
                size = chunk.size * _BYTES_PER_VALUE[tensor.type]
            yield chunk, stream.read(size)


def _check_exact(checkpoint: Checkpoint, source: PlannedTensor, gguf: GGUFFile, stored: GGUFTensor) -> None:
    """Compare bit by bit with the source's values rounded once to the stored type."""
    if stored.type not in _BYTES_PER_VALUE:
        raise UnsupportedError(f"{gguf.path}: {stored.name!r} is of type {stored.type}; verify knows f32 to q8_0")
    for chunk, raw in _stored_chunks(gguf, stored, source_chunks(checkpoint, source)):
        if _rounded(chunk, stored.type) != raw:
            raise CheckFailedError(f"{gguf.path}: {stored.name!r} is not {source.source!r} rounded to {stored.type}")


def _rounded(values: "Floats", kind: str) -> bytes:
    import numpy as np

    if kind == "BF16":
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.int16).numpy().tobytes()
    return values.astype("<f4" if kind == "F32" else "<f2").tobytes()


def _check_q8_0(checkpoint: Checkpoint, source: PlannedTensor, gguf: GGUFFile, stored: GGUFTensor) -> float:
    """Check every value against half a step of its block; return the largest deviation in steps.

    A block of 32 values has the step ``d = largest / 127``; a value ``x`` is stored as ``q = round(x / d)``, so
    ``|x - q d| <= d / 2``. The file holds ``d`` as f16, off by ``e <= max(d 2^-11, 2^-25)``, and a reader computes
    ``q`` times that; hence ``|x - decoded| <= d / 2 + |q| e``, plus the encoder's f32 rounding.
    """
    import numpy as np

    worst = 0.0
    for chunk, raw in _stored_chunks(gguf, stored, source_chunks(checkpoint, source)):
        blocks = np.frombuffer(raw, np.dtype([("d", "<f2"), ("q", "i1", (Q8_0_BLOCK,))]))
        x = chunk.reshape(-1, Q8_0_BLOCK).astype(np.float64)
        q, scale = blocks["q"].astype(np.float64), blocks["d"].astype(np.float64)[:, None]
        step = np.abs(x).max(axis=1, keepdims=True) / 127
        rounding = np.maximum(step * _F16_RELATIVE, _F16_ABSOLUTE)
        error = np.abs(x - q * scale)
        allowed = step / 2 + np.abs(q) * rounding + 127 * step * _F32_SLACK
        beyond = error > allowed
        if beyond.any() or (np.abs(scale - step) > rounding + step * _F32_SLACK).any():
            found = float((error / np.maximum(step, np.finfo(np.float64).tiny)).max())
            raise CheckFailedError(
                f"{gguf.path}: {stored.name!r} is off by {found:.3f} steps of a q8_0 block, more than half a step"
            )
        relative = np.divide(error, step, out=np.zeros_like(error), where=step > 0)
        worst = max(worst, float(relative.max(initial=0.0)))
    return worst
