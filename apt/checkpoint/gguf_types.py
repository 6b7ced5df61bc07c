"""Which type each tensor of a GGUF gets, for every kind of GGUF that people know by name.

F32, F16, BF16 and Q8_0 are as ``apt_model ollama export`` writes them. The K-quants are mixtures: which tensors get
more bits is the rule of llama.cpp's ``llama-quant.cpp``, without an importance matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from apt.checkpoint.gguf import TENSOR_TYPES

#: Kinds of file, from the largest to the smallest, and the type that most of their matrices have.
FILE_TYPES: Final[Mapping[str, str]] = {
    "F32": "F32", "BF16": "BF16", "F16": "F16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K",
    "Q5_0": "Q5_0", "Q4_1": "Q4_1", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_0": "Q4_0", "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K",
}  # fmt: skip

#: What stands in where a row is no multiple of a K-quant's 256 values.
_FALLBACKS: Final = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
#: An output head with shorter rows stays f16 in the exporter's Q8_0.
_MIN_HEAD_ROW: Final = 128
_BLOCKS: Final = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}

Place = Literal["embedding", "head", "attention-value", "attention-output", "attention-qkv", "down", "matrix", "vector"]


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """A tensor of the GGUF to be.

    :param place: what the rule asks for; ``vector`` for all that stays f32: norms, biases, routers, convolutions.
    :param rows, row_length: its rows, of all experts together, and the values of one.
    :param layer: its layer, counted from zero; 0 outside.
    """

    place: Place
    rows: int
    row_length: int
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the rule knows of the whole model. ``head_stored`` is false where the embedding is the head too."""

    layers: int
    groups: int
    experts: int
    head_stored: bool


def tensor_type(file_type: str, weight: PlannedWeight, model: Mixture) -> str:
    """Return the type of one tensor."""
    if weight.place == "vector":
        return "F32"
    kind = FILE_TYPES[file_type]
    if kind in ("F32", "F16", "BF16"):
        return kind
    head = weight.place == "head" or (weight.place == "embedding" and not model.head_stored)
    if file_type == "Q8_0":
        short = weight.place in ("head", "embedding") and weight.row_length < _MIN_HEAD_ROW
        return "F16" if weight.row_length % 32 or short else "Q8_0"
    if head:
        kind = "Q6_K" if weight.row_length % 256 == 0 else "Q8_0"
    elif weight.place != "embedding":
        kind = _upgraded(file_type, kind, weight, model)
    if weight.row_length % _BLOCKS[kind][0]:
        kind = _FALLBACKS.get(kind, "F16")
    return "F16" if weight.row_length % _BLOCKS[kind][0] else kind


def tensor_bytes(kind: str, weight: PlannedWeight) -> int:
    """Return the bytes of a tensor of a type, without padding."""
    values, size = _BLOCKS[kind]
    return weight.rows * (weight.row_length // values) * size


def _upgraded(file_type: str, kind: str, weight: PlannedWeight, model: Mixture) -> str:
    """Return the type of a layer's matrix: some of them get more bits than the rest."""
    layer, n = weight.layer, model.layers
    more = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    if weight.place == "attention-value":
        if model.experts == 8:
            return "Q8_0"
        chosen = {
            "Q2_K": "Q4_K" if model.groups >= 4 else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < 4 else kind,
            "Q4_K_M": "Q6_K" if more else kind,
            "Q5_K_M": "Q6_K" if more else kind,
        }.get(file_type, kind)
        # 80 layers: a 70B, whose eight query heads share a value; more bits cost next to nothing there.
        return "Q5_K" if n == 80 and chosen in ("Q3_K", "Q4_K") else chosen
    if weight.place == "down":
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < n // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < n // 8 else kind,
            "Q4_K_M": "Q6_K" if more else kind,
            "Q5_K_M": "Q6_K" if more else kind,
        }.get(file_type, kind)
    if weight.place == "attention-output":
        if model.experts == 8 and kind in ("Q2_K", "Q3_K", "Q4_K"):
            return "Q5_K"
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(file_type, kind)
    if weight.place == "attention-qkv":
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(file_type, kind)
    return kind
