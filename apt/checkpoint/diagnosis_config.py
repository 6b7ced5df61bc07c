"""The config against the tensors that are stored."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from apt.checkpoint.architecture import ARCHITECTURES, Architecture
from apt.checkpoint.diagnosis_settings import packed_tensors
from apt.checkpoint.expected import ExpectedTensor, expected_tensors
from apt.checkpoint.findings import Finding, error, note, warning
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.safetensors_header import TensorInfo
from apt.console.errors import BadInputError, UnsupportedError

_DTYPE_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}

#: Buffers that old checkpoints hold and loading leaves out.
_BUFFERS: Final = re.compile(r"(\.rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")

_OTHER_MODEL: Final = "config.json and the weights are not of the same model"


def config_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Sizes that contradict one another, and the dtype that the config names."""
    config = checkpoint.config
    try:
        d = checkpoint.architecture.dimensions(config)
    except UnsupportedError as problem:
        yield warning(
            "unknown-architecture", "config.json", problem.message, "a family without a descriptor",
            "tensors and config are not compared; `apt_model test` loads the model",
        )  # fmt: skip
        return
    if d.layers > len(checkpoint.tensors):
        yield error(
            "layer-count", "config.json", f"{d.layers} layers, but only {len(checkpoint.tensors)} tensors",
            "num_hidden_layers was edited", "set num_hidden_layers as the model was made",
        )  # fmt: skip
    if d.heads % d.kv_heads:
        yield error(
            "head-groups", "config.json", f"{d.heads} heads are no multiple of {d.kv_heads} KV heads",
            "one of the two was edited", "set num_attention_heads and num_key_value_heads as the model was made",
        )  # fmt: skip
    if checkpoint.architecture.heads_divide_hidden and d.hidden % d.heads:
        yield error(
            "head-size", "config.json", f"hidden size {d.hidden} is no multiple of {d.heads} heads",
            "one of the two was edited", "transformers refuses such a config; restore the values of the model",
        )  # fmt: skip
    stated = config.get("dtype") or config.get("torch_dtype")
    stored = Counter(t.dtype for t in checkpoint.tensors.values()).most_common(1)
    if packed_tensors(checkpoint):
        return  # told for what it is
    if isinstance(stated, str) and stored and _DTYPE_NAMES.get(stated, stored[0][0]) != stored[0][0]:
        yield warning(
            "dtype", "config.json", f"says {stated}, most tensors are {stored[0][0]}",
            "the weights were converted without the config", f'set "dtype" to what is stored ({stored[0][0]})',
        )  # fmt: skip


def tensor_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Missing, unexpected and mismatched tensors, and a head that contradicts the config."""
    try:
        architecture = checkpoint.architecture
    except UnsupportedError:
        return
    if architecture.dimensions(checkpoint.config).layers > len(checkpoint.tensors):
        return  # told as a fault of the config; a list of that many layers' tensors would not end
    if packed_tensors(checkpoint):
        return  # a quantiser packs and renames; its shapes say nothing
    wanted = expected_tensors(architecture, checkpoint.config)
    stored = _with_prefix(architecture, checkpoint.tensors)
    other = _other_family(checkpoint, wanted, stored)
    if other:
        yield error(
            "model-type", "config.json: model_type", f"is {architecture.model_type!r}; the {len(stored)} tensors are "
            f"exactly those of {other!r} with the same sizes", "the config was edited, or is another model's",
            f'set "model_type" to "{other}" and copy the other settings of the original config',
        )  # fmt: skip
        return
    yield from _missing(architecture, wanted, stored)
    for name, tensor in stored.items():
        if name not in wanted:
            yield from _unexpected(architecture, wanted, name)
        elif tensor.shape != wanted[name].shape:
            yield _mismatched(name, tensor, wanted[name], checkpoint)
    tied = architecture.dimensions(checkpoint.config).tied
    if tied and architecture.head in stored:
        head, embedding = checkpoint.tensors[architecture.head], checkpoint.tensors.get(architecture.embedding)
        same = embedding is not None and head.size_bytes == embedding.size_bytes and _equal(head, embedding)
        make = note if same else warning
        yield make(
            "tied-head", architecture.head,
            f"the config ties it to the embedding, the file stores it too, {'equal' if same else 'with other values'}",
            "saved by a tool that does not know the tie",
            "remove it, it doubles the embedding" if same else 'set "tie_word_embeddings" to false to use it',
        )  # fmt: skip


def _other_family(
    checkpoint: Checkpoint, wanted: Mapping[str, ExpectedTensor], stored: Mapping[str, TensorInfo]
) -> str | None:
    """Return the one other family whose tensors these are, name by name and shape by shape."""
    if _fits(wanted, stored):
        return None
    found = []
    for name, architecture in ARCHITECTURES.items():
        try:
            if _fits(expected_tensors(architecture, checkpoint.config), stored):
                found.append(name)
        except BadInputError:  # it asks for sizes that this config lacks
            continue
    return found[0] if len(found) == 1 else None


def _fits(wanted: Mapping[str, ExpectedTensor], stored: Mapping[str, TensorInfo]) -> bool:
    needed = {n for n, w in wanted.items() if not w.optional}
    names = {n for n in stored if not _BUFFERS.search(n)}
    return needed <= names <= set(wanted) and all(stored[n].shape == wanted[n].shape for n in names)


def _with_prefix(architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Name tensors as the whole model does: a base model's file lacks the first part of the names."""
    prefix = architecture.embedding.partition(".")[0] + "."
    if architecture.embedding in tensors or architecture.embedding.removeprefix(prefix) not in tensors:
        return dict(tensors)
    return {n if n == architecture.head else prefix + n: t for n, t in tensors.items()}


def _missing(
    architecture: Architecture, wanted: Mapping[str, ExpectedTensor], stored: Mapping[str, TensorInfo]
) -> Iterator[Finding]:
    absent = [n for n, w in wanted.items() if n not in stored and not w.optional]
    if architecture.head in absent:
        absent.remove(architecture.head)
        yield error(
            "missing-head", architecture.head, "is not stored, and the config does not tie it to the embedding",
            "tie_word_embeddings was lost, or a shard", 'set "tie_word_embeddings" to true if the model was tied',
        )  # fmt: skip
    biases = [n for n in absent if n.endswith(".bias")]
    if biases and len(biases) == len(absent):
        yield error(
            "missing-bias", biases[0], f"{len(biases)} biases that the family has are not stored{_few(biases)}",
            "a conversion that knows weights only", "convert the original model again",
        )  # fmt: skip
    elif absent:
        yield error(
            "missing-tensor", absent[0], f"{len(absent)} of {len(wanted)} tensors are missing{_few(absent)}",
            "a shard was left out, or num_hidden_layers is too large; transformers would fill them with random numbers",
            "copy the whole model again, or restore config.json",
        )  # fmt: skip


def _unexpected(architecture: Architecture, wanted: Mapping[str, ExpectedTensor], name: str) -> Iterator[Finding]:
    if _BUFFERS.search(name):
        return
    layer = architecture.layer_of(name)
    layers = {architecture.layer_of(n) for n in wanted}
    beyond = layer is not None and layer not in layers
    yield error(
        "unexpected-tensor", name, "no part of the model that config.json describes reads it",
        "num_hidden_layers is too small" if beyond else _OTHER_MODEL, "restore config.json, or remove the tensor",
    )  # fmt: skip


def _mismatched(name: str, tensor: TensorInfo, wanted: ExpectedTensor, checkpoint: Checkpoint) -> Finding:
    turned = len(tensor.shape) == 2 and tensor.shape == wanted.shape[::-1]
    vocabulary = name in (checkpoint.architecture.embedding, checkpoint.architecture.head)
    cause, mend = _OTHER_MODEL, "restore config.json, or copy the weights again"
    if turned:
        cause, mend = "the matrix is transposed", "convert the weights again"
    elif vocabulary and tensor.shape[1:] == wanted.shape[1:]:
        cause, mend = "vocab_size was not set when tokens were added", f'set "vocab_size" to {tensor.shape[0]}'
    return error(
        "tensor-shape", name, f"is {list(tensor.shape)}, the config asks for {list(wanted.shape)}", cause, mend
    )


def _equal(first: TensorInfo, second: TensorInfo) -> bool:
    """Compare the stored bytes of two tensors in pieces."""
    with first.path.open("rb") as a, second.path.open("rb") as b:
        a.seek(first.start)
        b.seek(second.start)
        left = first.size_bytes
        while left:
            n = min(left, 1 << 20)
            if a.read(n) != b.read(n):
                return False
            left -= n
    return True


def equal_tensors(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors have the same bytes."""
    a, b = checkpoint.tensors[first], checkpoint.tensors[second]
    return a.size_bytes == b.size_bytes and a.dtype == b.dtype and _equal(a, b)


def _few(names: list[str]) -> str:
    return f": {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
