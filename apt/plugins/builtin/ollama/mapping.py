"""From a Llama, Mistral or Qwen checkpoint to llama.cpp's architecture: tensor names, row order, metadata.

Everything that llama.cpp would silently drop (a sliding window, an activation it does not know, a RoPE scaling it
computes otherwise) is refused by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from apt.checkpoint.architecture import Dimensions
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, UnsupportedError

#: Role of a layer's tensor → its name in a ``blk.N.`` block.
BLOCK_NAMES: Final[Mapping[str, str]] = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
#: llama.cpp's architectures that rotate neighbouring values of a head, so that rows are reordered for them; the
#: others rotate a head's halves, as transformers does.
_ROTATES_NEIGHBOURS: Final = frozenset({"llama"})
READABLE_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
#: Tensors that old checkpoints store although they follow from the config.
_DERIVED: Final = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the GGUF.

    :param name: its GGUF name.
    :param source: its name in the checkpoint.
    :param shape: outermost dimension first; the same in both files.
    :param heads: number of heads whose rows are reordered for llama.cpp's RoPE; 0 for none.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    heads: int = 0

    @property
    def row_length(self) -> int:
        """Values of a row, the innermost dimension."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows; a vector is one row."""
        return math.prod(self.shape[:-1])

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor may be stored in a type other than f32; norms and biases may not."""
        return len(self.shape) == 2


@dataclass(frozen=True, slots=True)
class RotaryScaling:
    """How the config scales RoPE: metadata to write, and the divisors of the frequencies (Llama 3.1), if any."""

    metadata: Mapping[str, float | int | str]
    factors: tuple[float, ...] | None = None


def check_config(checkpoint: Checkpoint) -> Dimensions:
    """Return the model's sizes, having refused what llama.cpp would not compute alike.

    :raises UnsupportedError: naming the config value that stands in the way.
    """
    config, where = checkpoint.config, checkpoint.path
    name = checkpoint.architecture.gguf_name
    if name is None:
        raise UnsupportedError(
            f"{where}: GGUF export does not cover the architecture {config.get('model_type')!r} yet",
            hint="it covers llama, mistral, qwen2 and qwen3",
        )
    if config.get("quantization_config"):
        raise UnsupportedError(f"{where}: the checkpoint is quantized already", hint="export the unquantized one")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedError(f"{where}: hidden_act is {activation!r}; llama.cpp's {name} computes SiLU")
    sizes = checkpoint.architecture.dimensions(config)
    kinds = checkpoint.architecture.kinds(config, sizes.layers)
    window = min((kind.window for kind in kinds if kind.window is not None), default=sizes.context)
    if window < sizes.context:
        raise UnsupportedError(
            f"{where}: sliding_window is {window}; llama.cpp's {name} attends to the whole context",
            hint=f"a max_position_embeddings of at most {window} makes the two equal",
        )
    if sizes.head_dim % 2:
        raise UnsupportedError(f"{where}: heads of odd size {sizes.head_dim} have no rotary embedding")
    if sizes.heads % sizes.kv_heads:
        raise BadInputError(f"{where}: {sizes.heads} heads are no multiple of {sizes.kv_heads} key/value heads")
    rotary_scaling(checkpoint, sizes)
    return sizes


def rotary_scaling(checkpoint: Checkpoint, sizes: Dimensions) -> RotaryScaling:
    """Translate the config's RoPE parameters.

    :raises UnsupportedError: for a kind of scaling other than ``default``, ``linear`` and ``llama3``.
    """
    config = checkpoint.config
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(stated.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = stated.get("rope_type", stated.get("type", "default"))
    if float(stated.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedError(f"{checkpoint.path}: a partial rotary embedding is not covered by GGUF export")
    metadata: dict[str, float | int | str] = {"rope.dimension_count": sizes.head_dim, "rope.freq_base": theta}
    if kind == "default":
        return RotaryScaling(metadata)
    if kind == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(stated["factor"])}
        return RotaryScaling(metadata)
    if kind == "llama3":
        return RotaryScaling(metadata, _llama3_factors(stated, theta, sizes.head_dim))
    raise UnsupportedError(f"{checkpoint.path}: RoPE scaling {kind!r} is not covered by GGUF export")


def _llama3_factors(stated: Mapping[str, Any], theta: float, head_dim: int) -> tuple[float, ...]:
    """Divisors of the rotary frequencies as Llama 3.1 defines them; ``head_dim / 2`` values."""
    factor = float(stated["factor"])
    low, high = float(stated["low_freq_factor"]), float(stated["high_freq_factor"])
    original = float(stated["original_max_position_embeddings"])
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(factors)


def plan_tensors(checkpoint: Checkpoint, sizes: Dimensions) -> list[PlannedTensor]:
    """Return the tensors of the GGUF in file order.

    :raises BadInputError: when a tensor is missing, has another shape than the config says, or has no place.
    :raises UnsupportedError: for tensors of a dtype other than F32, F16 and BF16.
    """
    plan = [_planned(checkpoint, "token_embd.weight", checkpoint.architecture.embedding, (sizes.vocab, sizes.hidden))]
    for layer in range(sizes.layers):
        plan += _plan_layer(checkpoint, sizes, layer)
    plan.append(_planned(checkpoint, "output_norm.weight", checkpoint.architecture.final_norm, (sizes.hidden,)))
    if not sizes.tied:
        plan.append(_planned(checkpoint, "output.weight", checkpoint.architecture.head, (sizes.vocab, sizes.hidden)))
    placed = {tensor.source for tensor in plan}
    # A tied head that is stored all the same is the embedding once more.
    placed |= {checkpoint.architecture.head} if sizes.tied else set()
    left = sorted(n for n in checkpoint.tensors if n not in placed and not n.endswith(_DERIVED))
    if left:
        raise BadInputError(
            f"{checkpoint.path}: the tensor {left[0]!r} has no place in a {checkpoint.architecture.gguf_name} GGUF"
        )
    return plan


def _plan_layer(checkpoint: Checkpoint, sizes: Dimensions, layer: int) -> list[PlannedTensor]:
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    outputs = {
        "q": queries, "k": keys, "v": keys, "o": sizes.hidden,
        "gate": sizes.ff, "up": sizes.ff, "down": sizes.hidden,
    }  # fmt: skip
    inputs = {"o": queries, "down": sizes.ff}
    neighbours = checkpoint.architecture.gguf_name in _ROTATES_NEIGHBOURS
    reordered = {"q": sizes.heads, "k": sizes.kv_heads} if neighbours else {}
    plan = []
    for role, short in BLOCK_NAMES.items():
        if role not in checkpoint.architecture.roles:
            continue
        is_norm = role.endswith("norm")
        norm_size = sizes.head_dim if role in ("q_norm", "k_norm") else sizes.hidden
        shape = (norm_size,) if is_norm else (outputs[role], inputs.get(role, sizes.hidden))
        name = checkpoint.architecture.layer_tensor(layer, role)
        heads = reordered.get(role, 0)
        plan.append(_planned(checkpoint, f"blk.{layer}.{short}.weight", name, shape, heads))
        if not is_norm:
            bias = checkpoint.architecture.layer_tensor(layer, role, "bias")
            if bias in checkpoint.tensors:
                plan.append(_planned(checkpoint, f"blk.{layer}.{short}.bias", bias, (outputs[role],), heads))
    return plan


def _planned(checkpoint: Checkpoint, name: str, source: str, shape: tuple[int, ...], heads: int = 0) -> PlannedTensor:
    info = checkpoint.tensors.get(source)
    if info is None:
        raise BadInputError(f"{checkpoint.path}: the tensor {source!r} is missing")
    if info.shape != shape:
        raise BadInputError(f"{checkpoint.path}: {source!r} has shape {info.shape}, the config says {shape}")
    if info.dtype not in READABLE_DTYPES:
        raise UnsupportedError(
            f"{checkpoint.path}: {source!r} is of dtype {info.dtype}", hint="GGUF export reads F32, F16 and BF16"
        )
    return PlannedTensor(name, source, shape, heads)


def model_metadata(checkpoint: Checkpoint, sizes: Dimensions, name: str) -> dict[str, float | int | str]:
    """Return the metadata of the model itself, without the tokenizer's."""
    values: dict[str, float | int | str] = {
        "block_count": sizes.layers,
        "context_length": sizes.context,
        "embedding_length": sizes.hidden,
        "feed_forward_length": sizes.ff,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": float(checkpoint.config.get("rms_norm_eps", 1e-6)),
        "vocab_size": sizes.vocab,
        **rotary_scaling(checkpoint, sizes).metadata,
    }
    prefix = checkpoint.architecture.gguf_name
    return {"general.name": name, **{f"{prefix}.{key}": value for key, value in values.items()}}
