"""How large a GGUF of a checkpoint would be, before it is made: tensors, padding, tensor table, tokenizer."""

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Final

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.gguf import DEFAULT_ALIGNMENT
from apt.checkpoint.gguf_types import FILE_TYPES, Mixture, Place, PlannedWeight, tensor_bytes, tensor_type
from apt.checkpoint.reader import Checkpoint, read_json
from apt.checkpoint.tokenizer_facts import chat_template

_PLACES: Final[dict[str, Place]] = {
    "v": "attention-value", "o": "attention-output", "qkv": "attention-qkv", "down": "down",
    "expert_down": "down", "shared_down": "down",
}  # fmt: skip
#: Metadata beside the tokenizer: names, sizes, rotary settings.
_METADATA_BYTES: Final = 1024
#: A tensor's entry in the table: name with its length, dimensions with their number, type, offset.
_ENTRY_BYTES: Final = 8 + 20 + 4 + 2 * 8 + 4 + 8
#: A token's or merge's length, a token's type.
_LENGTH_BYTES: Final = 8
_TYPE_BYTES: Final = 4


def predict_gguf_bytes(checkpoint: Checkpoint, file_types: Iterable[str] = tuple(FILE_TYPES)) -> dict[str, int]:
    """Return the size of the file for each kind of GGUF that is asked for, its tokenizer included.

    :raises UnsupportedError: for a family without a descriptor.
    :raises BadInputError: when the config lacks a size, or a tokenizer file is not valid JSON.
    """
    sizes = predict_weight_bytes(checkpoint, file_types)
    header = _METADATA_BYTES + len(checkpoint.tensors) * _ENTRY_BYTES + tokenizer_bytes(checkpoint.path)
    return {name: size + header for name, size in sizes.items()}


def predict_weight_bytes(checkpoint: Checkpoint, file_types: Iterable[str]) -> dict[str, int]:
    """Return the bytes of the tensors alone; errors as :func:`predict_gguf_bytes`."""
    architecture = checkpoint.architecture
    d = architecture.dimensions(checkpoint.config)
    weights = list(planned_weights(checkpoint, architecture))
    head_stored = any(w.place == "head" for w in weights)
    mixture = Mixture(d.layers, max(1, d.heads // d.kv_heads), d.experts.count if d.experts else 0, head_stored)
    return {name: sum(_padded(tensor_bytes(tensor_type(name, w, mixture), w)) for w in weights) for name in file_types}


def planned_weights(checkpoint: Checkpoint, architecture: Architecture) -> Iterator[PlannedWeight]:
    """Yield the tensors of the GGUF: those of the checkpoint, the experts of a layer side by side in one."""
    tied = architecture.dimensions(checkpoint.config).tied
    experts: dict[tuple[int, str], PlannedWeight] = {}
    for name, tensor in checkpoint.tensors.items():
        if tied and name == architecture.head:
            continue  # the embedding once more
        place, layer = _place(architecture, name, tensor.shape), architecture.layer_of(name) or 0
        row = tensor.shape[-1] if tensor.shape else 1
        if architecture.transposed and place not in ("vector", "embedding", "head") and len(tensor.shape) == 2:
            row = tensor.shape[0]
        weight = PlannedWeight(place, prod(tensor.shape) // max(1, row), row, layer)
        role = architecture.role_of(name) or ""
        if role.startswith("expert_"):
            known = experts.get((layer, role))
            rows = weight.rows + (known.rows if known else 0)
            experts[layer, role] = PlannedWeight(place, rows, row, layer)
        else:
            yield weight
    yield from experts.values()


def _place(architecture: Architecture, name: str, shape: tuple[int, ...]) -> Place:
    if name == architecture.head:
        return "head"
    if name == architecture.embedding:
        return "embedding"
    role = architecture.role_of(name) or ""
    if len(shape) < 2 or name in architecture.other_embeddings or role in ("router", "shared_router", "linear_conv"):
        return "vector"
    return _PLACES.get(role, "matrix")


def tokenizer_bytes(directory: Path) -> int:
    """Return about what the tokenizer takes in a GGUF's metadata: texts and types of tokens, merges, template.

    :raises BadInputError: when a file is not valid JSON.
    """
    template = _utf8_bytes(chat_template(directory) or "")
    definition = directory / "tokenizer.json"
    if not definition.is_file():
        sentencepiece = directory / "tokenizer.model"
        return template + (2 * sentencepiece.stat().st_size if sentencepiece.is_file() else 0)
    model = read_json(definition).get("model")
    vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    tokens: list[str] = []
    if isinstance(vocab, dict):
        tokens = list(vocab)
    elif isinstance(vocab, list):
        tokens = [str(entry[0]) for entry in vocab if isinstance(entry, list) and entry]
    scores = 4 * len(tokens) if isinstance(vocab, list) else 0
    texts = sum(_utf8_bytes(t) + _LENGTH_BYTES + _TYPE_BYTES for t in tokens)
    pairs = merges if isinstance(merges, list) else []
    joined = (m if isinstance(m, str) else " ".join(map(str, m)) for m in pairs if isinstance(m, (str, list)))
    return template + texts + scores + sum(_utf8_bytes(m) + _LENGTH_BYTES for m in joined)


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))  # JSON can hold half a pair


def _padded(size: int) -> int:
    return (size + DEFAULT_ALIGNMENT - 1) // DEFAULT_ALIGNMENT * DEFAULT_ALIGNMENT
