"""Architecture descriptors: one declarative table of model families.

For each family it says which tensor is which, which sizes mean what, and what sizes are legal. ``info``, pruning,
distillation, GGUF export and the arithmetic of the KV cache read this table; a family that is not in it is refused
by what needs one. Tensor names and config keys are those of transformers 5.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from apt.console.errors import BadInputError, UnsupportedError
from apt.registry import did_you_mean

Part = Literal["embedding", "attention", "mlp", "norm", "head", "other"]


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model.

    ``heads`` query heads share ``kv_heads`` key/value heads in groups of ``heads // kv_heads``; ``ff`` is the inner
    size of the MLP; ``tied`` says whether the head is the embedding.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    layers: int
    vocab: int
    context: int
    tied: bool


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family.

    :param roles: role → module path inside a layer. Roles: ``q k v o`` (or fused ``qkv``), ``gate up down`` (or fused
        ``gate_up``), ``attention_norm``, ``mlp_norm``, ``q_norm``, ``k_norm``, ``attention_post_norm``,
        ``mlp_post_norm``.
    :param gguf_name: llama.cpp's name of the architecture, for those that the exporter writes.
    :param transposed: the linear weights are stored [in, out] (GPT-2's Conv1D), not [out, in].
    :param heads_divide_hidden: the family's config refuses a hidden size that is no multiple of the heads, even when
        ``head_dim`` is given.
    :param biases: roles that carry a bias when the config key (or ``True``) says so.
    """

    model_type: str
    roles: Mapping[str, str]
    gguf_name: str | None = None
    layer_prefix: str = "model.layers.{}."
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    other_embeddings: tuple[str, ...] = ()
    transposed: bool = False
    heads_divide_hidden: bool = False
    biases: Mapping[str, bool | str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def dimensions(self, config: Mapping[str, Any]) -> Dimensions:
        """Return the sizes that a config states.

        :raises BadInputError: when one is missing or is not a positive whole number.
        """
        hidden, heads = self._size(config, "hidden_size"), self._size(config, "num_attention_heads")
        head_dim = config.get("head_dim")
        ff_key = self.key("intermediate_size")
        ff = config.get(ff_key)
        return Dimensions(
            hidden=hidden,
            heads=heads,
            kv_heads=self._size(config, "num_key_value_heads", default=heads),
            head_dim=self._size(config, "head_dim") if head_dim else hidden // heads,
            ff=4 * hidden if ff is None and self.model_type == "gpt2" else self._size(config, "intermediate_size"),
            layers=self._size(config, "num_hidden_layers"),
            vocab=self._size(config, "vocab_size"),
            context=self._size(config, "max_position_embeddings"),
            tied=bool(config.get("tie_word_embeddings", self.model_type in _TIED_BY_DEFAULT)),
        )

    def key(self, standard: str) -> str:
        """Return the config key that this family uses for a standard one (GPT-2's ``n_embd`` for ``hidden_size``)."""
        return self.keys.get(standard, standard)

    def layer_tensor(self, layer: int, role: str, kind: Literal["weight", "bias"] = "weight") -> str:
        """Return the name of a layer's tensor.

        :raises UnsupportedError: when the family has no such role.
        """
        if role not in self.roles:
            raise UnsupportedError(f"{self.model_type} layers have no {role!r}", hint=did_you_mean(role, self.roles))
        return f"{self.layer_prefix.format(layer)}{self.roles[role]}.{kind}"

    def layer_of(self, tensor: str) -> int | None:
        """Return the layer that a tensor belongs to; ``None`` outside the layers."""
        pattern = re.escape(self.layer_prefix).replace(r"\{\}", r"(\d+)")
        match = re.match(pattern, tensor)
        return int(match.group(1)) if match else None

    def role_of(self, tensor: str) -> str | None:
        """Return the role of a layer's tensor; ``None`` for one without."""
        layer = self.layer_of(tensor)
        if layer is None:
            return None
        inner = tensor.removeprefix(self.layer_prefix.format(layer)).rpartition(".")[0]
        return next((role for role, path in self.roles.items() if path == inner), None)

    def component_of(self, tensor: str) -> Part:
        """Return the component that a tensor's parameters are counted under."""
        if tensor == self.embedding or tensor in self.other_embeddings:
            return "embedding"
        if tensor == self.head:
            return "head"
        if tensor.rpartition(".")[0] == self.final_norm.rpartition(".")[0]:
            return "norm"
        role = self.role_of(tensor)
        if role is None:
            return "other"
        if role.endswith("norm"):
            return "norm"
        return "mlp" if role in ("gate", "up", "down", "gate_up") else "attention"

    def kv_bytes_per_token(self, config: Mapping[str, Any], bytes_per_value: int = 2) -> int:
        """Bytes that one token adds to a full KV cache: 2 · layers · KV heads · head size · bytes a value."""
        d = self.dimensions(config)
        return 2 * d.layers * d.kv_heads * d.head_dim * bytes_per_value

    def _size(self, config: Mapping[str, Any], standard: str, default: int | None = None) -> int:
        key = self.key(standard)
        value = config.get(key, default)
        if value is None and default is not None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise BadInputError(f"config.json: {key} is {value!r}, expected a positive whole number")
        return value


_LLAMA_ROLES: Final = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_QK_NORMS: Final = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_FOUR_NORMS: Final = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
#: Families whose config ties the head to the embedding when it does not say otherwise.
_TIED_BY_DEFAULT: Final = frozenset({"gpt2", "gemma2", "gemma3_text"})

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    a.model_type: a
    for a in (
        Architecture(
            "llama",
            _LLAMA_ROLES,
            gguf_name="llama",
            heads_divide_hidden=True,
            biases=dict.fromkeys("qkvo", "attention_bias") | dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
        ),
        Architecture("mistral", _LLAMA_ROLES, gguf_name="llama"),
        Architecture("qwen2", _LLAMA_ROLES, biases={"q": True, "k": True, "v": True}),
        Architecture("qwen3", _LLAMA_ROLES | _QK_NORMS, biases=dict.fromkeys("qkvo", "attention_bias")),
        Architecture("gemma2", _LLAMA_ROLES | _FOUR_NORMS, heads_divide_hidden=True),
        Architecture("gemma3_text", _LLAMA_ROLES | _FOUR_NORMS | _QK_NORMS, heads_divide_hidden=True),
        Architecture(
            "phi3",
            {r: p for r, p in _LLAMA_ROLES.items() if r not in ("q", "k", "v", "gate", "up")}
            | {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
        ),
        Architecture(
            "olmo2",
            {r: p for r, p in _LLAMA_ROLES.items() if not r.endswith("norm")}
            | _QK_NORMS
            | {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
        ),
        Architecture(
            "gpt2",
            {
                "qkv": "attn.c_attn",
                "o": "attn.c_proj",
                "up": "mlp.c_fc",
                "down": "mlp.c_proj",
                "attention_norm": "ln_1",
                "mlp_norm": "ln_2",
            },
            layer_prefix="transformer.h.{}.",
            embedding="transformer.wte.weight",
            other_embeddings=("transformer.wpe.weight",),
            final_norm="transformer.ln_f.weight",
            transposed=True,
            biases=dict.fromkeys(("qkv", "o", "up", "down"), True),
            keys={
                "hidden_size": "n_embd",
                "num_attention_heads": "n_head",
                "num_hidden_layers": "n_layer",
                "intermediate_size": "n_inner",
                "max_position_embeddings": "n_positions",
                "num_key_value_heads": "n_head",
            },
        ),
    )
}


def descriptor(config: Mapping[str, Any], *, where: str) -> Architecture:
    """Return the descriptor of a config's family.

    :param where: the model's path, for the message.
    :raises UnsupportedError: for a family without descriptor.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"{where}: no descriptor for the architecture {model_type!r}",
            hint=f"known: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[model_type]
