"""A model of either format by its headers: its tensors by component, dtype and layer, its weights by precision."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from apt.checkpoint.architecture import descriptor
from apt.checkpoint.gguf import MAGIC, GGUFFile
from apt.checkpoint.gguf_prediction import predict_weight_bytes
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError
from apt.store import resolve

Format = Literal["safetensors", "gguf", "pickle"]

#: Components in the order they are shown.
COMPONENTS: Final = ("embedding", "attention", "mlp", "experts", "router", "norm", "head", "other")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one component and one dtype."""

    component: str
    dtype: str
    tensors: int
    parameters: int
    size_bytes: int


def open_model(ref: str) -> Checkpoint | GGUFFile:
    """Open a model of either format by its headers.

    :raises NotFoundError: when there is none; :raises BadInputError: when it is corrupted.
    """
    path = resolve(ref)
    if path.is_file() and (path.suffix == ".gguf" or _begins_as_gguf(path)):
        return GGUFFile.open(path)
    return Checkpoint.open(ref)


def _begins_as_gguf(path: Path) -> bool:
    """Whether a file without the suffix is a GGUF all the same: a blob of Ollama's has a digest for a name."""
    if path.suffix == ".safetensors":
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def display_name(ref: str, path: Path) -> str:
    """Return the name people know a model by: a Hub reference keeps its own, a path has its last part."""
    if ref.startswith("hf:"):
        return ref
    # A file of the Hub's cache is a link to a blob: its own name tells more than the blob's digest.
    own = path.name if path.name not in ("", "..") else path.resolve().name
    return own or ref


def tensor_groups(model: Checkpoint | GGUFFile) -> tuple[TensorGroup, ...]:
    """Sum a model's tensors by component and dtype, components in their order, larger dtypes first.

    Where no descriptor knows the architecture, every tensor's component is ``unknown``.
    """
    rows: list[tuple[str, str, int, int]] = []
    if isinstance(model, GGUFFile):
        rows = [(gguf_component(t.name), t.type, t.parameters, t.size_bytes) for t in model.tensors.values()]
    else:
        component = component_function(model.config, str(model.path))
        rows = [(component(t.name), t.dtype, t.elements, t.size_bytes) for t in model.tensors.values()]
    sums: dict[tuple[str, str], list[int]] = {}
    for part, dtype, parameters, size in rows:
        entry = sums.setdefault((part, dtype), [0, 0, 0])
        for i, n in enumerate((1, parameters, size)):
            entry[i] += n
    order = {part: i for i, part in enumerate(COMPONENTS)}
    groups = [TensorGroup(part, dtype, *entry) for (part, dtype), entry in sums.items()]
    return tuple(sorted(groups, key=lambda g: (order.get(g.component, len(order)), -g.size_bytes, g.dtype)))


_GGUF_LAYER: Final = re.compile(r"blk\.(\d{1,9})\.")
_LAYER_NORMS: Final = re.compile(
    r"blk\.\d+\.(?:attn|ffn|post_attention|post_ffw|layer_out)(?:_[qk]|_output|_post)?_norm(?:_2)?\."
)
_LAYER_ATTENTION: Final = re.compile(r"blk\.\d+\.attn_")
_LAYER_MLP: Final = re.compile(r"blk\.\d+\.ffn_")
_LAYER_EXPERTS: Final = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down|gate_up)_exps\.")
_LAYER_ROUTER: Final = re.compile(r"blk\.\d+\.(?:ffn_gate_inp|exp_probs_b)")


def gguf_component(tensor: str) -> str:
    """Return the component of a GGUF tensor, by llama.cpp's names."""
    if tensor.startswith(("token_embd.", "position_embd.", "token_types.")):
        return "embedding"
    if tensor.startswith("output."):
        return "head"
    if tensor.startswith(("output_norm.", "token_embd_norm.")) or _LAYER_NORMS.match(tensor):
        return "norm"
    if _LAYER_EXPERTS.match(tensor):
        return "experts"
    if _LAYER_ROUTER.match(tensor):
        return "router"
    if _LAYER_ATTENTION.match(tensor):
        return "attention"
    return "mlp" if _LAYER_MLP.match(tensor) else "other"


def component_function(config: Mapping[str, Any], where: str) -> Callable[[str], str]:
    """Return what names the component of a tensor; ``unknown`` for all where no descriptor knows the family."""
    try:
        return descriptor(config, where=where).component_of
    except UnsupportedError:
        return lambda _: "unknown"


def layer_function(model: Checkpoint | GGUFFile) -> Callable[[str], int | None]:
    """Return what names the layer of a tensor; ``None`` outside the layers, or where no descriptor knows the family."""
    if isinstance(model, GGUFFile):
        return lambda name: int(match[1]) if (match := _GGUF_LAYER.match(name)) else None
    try:
        return model.architecture.layer_of
    except UnsupportedError:
        return lambda _: None


#: llama.cpp's architectures whose metadata is enough for the arithmetic of a family of the table.
_GGUF_FAMILIES: Final = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def gguf_config(file: GGUFFile) -> dict[str, Any] | None:
    """Return the config that a GGUF's metadata amounts to; ``None`` for families where it does not say enough."""
    family = _GGUF_FAMILIES.get(file.architecture)
    head_dim = file.field("attention.key_length")
    if family is None or file.field("expert_count") or file.field("attention.sliding_window"):
        return None
    if head_dim != file.field("attention.value_length"):
        return None
    embedding = file.tensors.get("token_embd.weight")
    stated = {
        "model_type": family,
        "hidden_size": file.field("embedding_length"),
        "intermediate_size": file.field("feed_forward_length"),
        "num_hidden_layers": file.field("block_count"),
        "num_attention_heads": file.field("attention.head_count"),
        "num_key_value_heads": file.field("attention.head_count_kv"),
        "head_dim": head_dim,
        "max_position_embeddings": file.field("context_length"),
        "vocab_size": embedding.shape[0] if embedding is not None and embedding.shape else None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return {key: value for key, value in stated.items() if value is not None}


def precisions(model: Checkpoint | GGUFFile) -> dict[str, int]:
    """Return the bytes of the weights by precision: as stored, and in fp32, bf16, int8 and q4 where they are known.

    int8 is llama.cpp's Q8_0 and q4 its Q4_K_M, the mixtures most models are run in.
    """
    stored = sum(t.size_bytes for t in model.tensors.values())
    if isinstance(model, GGUFFile):
        return {"stored": stored, "fp32": 4 * model.parameters, "bf16": 2 * model.parameters}
    if isinstance(model.config.get("quantization_config"), Mapping):
        return {"stored": stored}
    found = {"stored": stored, "fp32": 4 * model.parameters, "bf16": 2 * model.parameters}
    try:
        int8, q4 = predict_weight_bytes(model, ("Q8_0", "Q4_K_M")).values()
    except (UnsupportedError, BadInputError):
        return found
    return found | {"int8": int8, "q4": q4}


def sums_by_key(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sum the numbers of equal keys, keys in the order of their first coming."""
    sums: dict[str, int] = {}
    for key, n in pairs:
        sums[key] = sums.get(key, 0) + n
    return sums
