"""What is declared of a family, and what follows from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from apt.checkpoint.architecture.dimensions import Dimensions, Experts, Latent, LinearAttention, size_of
from apt.console.errors import BadInputError, UnsupportedError, shown
from apt.registry import did_you_mean

Part = Literal["embedding", "attention", "mlp", "experts", "router", "norm", "head", "other"]

#: Configs with more layers are corrupted; the deepest models that were trained have some hundreds.
MOST_LAYERS: Final = 4096

#: Which component a role is counted under; roles that are not here are attention's.
_PARTS: Final[Mapping[str, Part]] = {
    **dict.fromkeys(("gate", "up", "down", "gate_up", "shared_gate", "shared_up", "shared_down"), "mlp"),
    **dict.fromkeys(("expert_gate", "expert_up", "expert_down", "expert_gate_up"), "experts"),
    **dict.fromkeys(("router", "router_bias", "shared_router"), "router"),
}


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What a layer is made of.

    :param mixer: ``full`` attention, ``sliding`` attention over ``window`` tokens, ``latent`` attention (MLA) or
        ``linear`` attention.
    :param sparse: whether its MLP is a mixture of experts.
    """

    mixer: Literal["full", "sliding", "latent", "linear"]
    sparse: bool
    window: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionPattern:
    """Which layers do not attend to the whole context, where the config has no ``layer_types``.

    :param other: what such a layer does: ``sliding`` over ``sliding_window`` tokens, or ``linear``.
    :param every: each layer whose number, counted from one, is a multiple of it attends to everything; 0: none does.
    :param every_keys: config keys that state ``every``; the first that is there counts.
    :param switch: config key that turns windows on; ``""`` when the window alone does.
    :param first_key: config key of the first layer with a window, ``first`` when the config lacks it.
    :param before_key: config key of the layer before which windows end, ``before`` when the config lacks it.
    :param default_window: the window of a config without ``sliding_window``.
    """

    other: Literal["sliding", "linear"] = "sliding"
    every: int = 0
    every_keys: tuple[str, ...] = ()
    switch: str = ""
    first_key: str = ""
    first: int = 0
    before_key: str = ""
    before: int = 0
    default_window: int | None = None


@dataclass(frozen=True)
class Architecture:
    """One family.

    :param roles: role → module path inside a layer, ``{}`` standing for the number of an expert or of a head. Roles:
        ``q k v o`` (or fused ``qkv``), ``gate up down`` (or fused ``gate_up``), ``attention_norm``, ``mlp_norm``,
        ``q_norm``, ``k_norm``, ``attention_post_norm``, ``mlp_post_norm``; with experts ``expert_gate``,
        ``expert_up``, ``expert_down``, ``router``, ``shared_gate`` …; with latent attention ``q_a q_a_norm q_b kv_a
        kv_a_norm kv_b``; with linear attention ``linear_in``, ``linear_gates``, ``linear_conv``, ``linear_norm``,
        ``linear_out``.
    :param parameters: role → name inside a layer of a parameter that is no module's weight or bias.
    :param only: role → where it is: ``dense`` or ``sparse`` layers, ``attention`` or ``linear`` layers, ``low-rank``
        or ``full-rank`` queries, ``sequential`` residuals, or a config key that must be true. Roles that are not here
        are in every layer.
    :param attention: which layers do not attend to the whole context.
    :param sparse: which layers have experts: ``all``, ``after-first`` (``first_k_dense_replace``) or ``step``
        (``decoder_sparse_step`` and ``mlp_only_layers``); ``""`` for none.
    :param final_norm: ``""`` where the last norm has no weight.
    :param layer_norm: norms are LayerNorms with a bias, not RMSNorms.
    :param norms_over_all_heads: query and key norms run over all heads together, not over each.
    :param gated_queries: the query matrix gives a gate for each of its values too.
    :param gguf_name: llama.cpp's name of the architecture, for those that the exporter writes.
    :param uniform: every layer has every role, and each linear one is a module of its own with a plain matrix, in the
        file and in the loaded model; what cuts, zeroes or probes modules by their roles needs it.
    :param transposed: the linear weights are stored [in, out] (GPT-2's Conv1D), not [out, in].
    :param heads_divide_hidden: the family's config refuses a hidden size that is no multiple of the heads, even when
        ``head_dim`` is given.
    :param heads_fill_hidden: the config has no head size: heads times head size is the hidden size.
    :param qkv_by_head: the rows of a fused ``qkv`` are query, key and value of one head after another; else all
        queries come first, then all keys, then all values.
    :param norms_add_one: RMSNorms multiply by one plus their weight (Gemma).
    :param embeddings_scaled: what the embedding gives is multiplied by the root of the hidden size (Gemma).
    :param biases: roles that carry a bias when the config key (or ``True``) says so.
    :param true_by_default: config keys that count as true when the config lacks them.
    :param keys: standard config key → the family's own; ``aliases``: the spelling that counts where that is absent.
    :param defaults: sizes by standard key that the family's config class fills in.
    """

    model_type: str
    roles: Mapping[str, str]
    gguf_name: str | None = None
    uniform: bool = False
    layer_prefix: str = "model.layers.{}."
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    other_embeddings: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, str] = field(default_factory=dict)
    attention: AttentionPattern | None = None
    sparse: Literal["", "all", "after-first", "step"] = ""
    latent: bool = False
    layer_norm: bool = False
    norms_over_all_heads: bool = False
    gated_queries: bool = False
    transposed: bool = False
    heads_divide_hidden: bool = False
    heads_fill_hidden: bool = False
    qkv_by_head: bool = False
    norms_add_one: bool = False
    embeddings_scaled: bool = False
    biases: Mapping[str, bool | str] = field(default_factory=dict)
    true_by_default: frozenset[str] = frozenset({"tie_word_embeddings"})
    keys: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, int] = field(default_factory=dict)

    def dimensions(self, config: Mapping[str, Any]) -> Dimensions:
        """Return the sizes that a config states.

        :raises BadInputError: when one is missing or is not a positive whole number.
        """
        hidden, heads = self._size(config, "hidden_size"), self._size(config, "num_attention_heads")
        ff = config.get(self.key("intermediate_size"))
        latent = self._latent(config)
        head_dim = self._size(config, "head_dim", hidden // heads or 1) if latent is None else latent.query_dim
        return Dimensions(
            hidden=hidden,
            heads=heads,
            kv_heads=self._size(config, "num_key_value_heads", heads),
            head_dim=head_dim,
            ff=4 * hidden if ff is None and self.transposed else self._size(config, "intermediate_size"),
            layers=self._size(config, "num_hidden_layers"),
            vocab=self._size(config, "vocab_size"),
            context=self._size(config, "max_position_embeddings"),
            tied=self.flag(config, "tie_word_embeddings"),
            experts=self._experts(config),
            latent=latent,
            linear=self._linear(config),
        )

    def kinds(self, config: Mapping[str, Any], layers: int) -> list[LayerKind]:
        """Return what each layer is made of.

        :raises BadInputError: when ``layer_types`` does not fit the number of layers or names an unknown kind, or the
            layers are more than any model has.
        """
        if layers > MOST_LAYERS:
            raise BadInputError(
                f"config.json: {self.key('num_hidden_layers')} is {shown(layers)}, more than any model has"
            )
        windows = self._windows(config, layers)
        return [LayerKind(mixer, self._is_sparse(config, i), window) for i, (mixer, window) in enumerate(windows)]

    def has_role(self, role: str, kind: LayerKind, config: Mapping[str, Any]) -> bool:
        """Whether layers of a kind have a role."""
        where = self.only.get(role, "")
        known = {
            "": True,
            "dense": not kind.sparse,
            "sparse": kind.sparse,
            "linear": kind.mixer == "linear",
            "attention": kind.mixer != "linear",
            "low-rank": self._query_rank(config) is not None,
            "full-rank": self._query_rank(config) is None,
            "sequential": not config.get("use_parallel_residual"),
        }
        return known[where] if where in known else self.flag(config, where)

    def flag(self, config: Mapping[str, Any], key: str) -> bool:
        """Return a true-or-false setting, with the default of the family's config class."""
        return bool(config.get(key, key in self.true_by_default))

    def key(self, standard: str) -> str:
        """Return the config key that this family uses for a standard one (GPT-2's ``n_embd`` for ``hidden_size``)."""
        return self.keys.get(standard, standard)

    def layer_tensor(self, layer: int, role: str, kind: Literal["weight", "bias"] = "weight") -> str:
        """Return the name of a layer's tensor, with ``{}`` where there is one for each expert or head.

        :raises UnsupportedError: when the family has no such role.
        """
        prefix = self.layer_prefix.format(layer)
        if role in self.parameters:
            return prefix + self.parameters[role]
        if role not in self.roles:
            raise UnsupportedError(f"{self.model_type} layers have no {role!r}", hint=did_you_mean(role, self.roles))
        return f"{prefix}{self.roles[role]}.{kind}"

    def layer_of(self, tensor: str) -> int | None:
        """Return the layer that a tensor belongs to; ``None`` outside the layers."""
        match = self._layer_pattern.match(tensor)
        return int(match.group(1)) if match else None

    def role_of(self, tensor: str) -> str | None:
        """Return the role of a layer's tensor; ``None`` for one without."""
        match = self._layer_pattern.match(tensor)
        if match is None:
            return None
        inner = tensor[match.end() :]
        numbered = _NUMBER.sub(".{}", inner)
        return self._roles_by_path.get(numbered) or self._roles_by_path.get(numbered.rpartition(".")[0])

    def component_of(self, tensor: str) -> Part:
        """Return the component that a tensor's parameters are counted under.

        The MLP that every token visits is ``mlp``, also where it stands beside experts; ``experts`` are those of
        which a token visits some.
        """
        if tensor == self.embedding or tensor in self.other_embeddings:
            return "embedding"
        if tensor == self.head:
            return "head"
        if self.final_norm and tensor.rpartition(".")[0] == self.final_norm.rpartition(".")[0]:
            return "norm"
        role = self.role_of(tensor)
        if role is None:
            return "other"
        return "norm" if role.endswith("norm") else _PARTS.get(role, "attention")

    def check_uniform(self, what: str) -> None:
        """Refuse a family whose layers differ or hold what is no plain matrix.

        :param what: what needs it, for the message ("pruning").
        :raises UnsupportedError: naming the family.
        """
        if not self.uniform:
            raise UnsupportedError(f"{what} does not cover the architecture {self.model_type!r}")

    def kv_bytes_per_token(self, config: Mapping[str, Any], bytes_per_value: int = 2) -> int:
        """Bytes that a token adds to the cache while no window is full.

        2 · KV heads · head size a layer with keys and values, the latent vector a layer of latent attention, nothing
        a layer of linear attention. See :mod:`apt.checkpoint.architecture.cache` for a cache at a given length.
        """
        from apt.checkpoint.architecture.cache import values_per_token

        d = self.dimensions(config)
        return sum(values_per_token(d, kind) for kind in self.kinds(config, d.layers)) * bytes_per_value

    @cached_property
    def _layer_pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.layer_prefix).replace(r"\{\}", r"(\d{1,9})"))

    @cached_property
    def _roles_by_path(self) -> dict[str, str]:
        return {path: role for role, path in {**self.parameters, **self.roles}.items()}

    def _size(self, config: Mapping[str, Any], standard: str, default: int | None = None, *, least: int = 1) -> int:
        key = self.key(standard)
        if key not in config and self.aliases.get(standard) in config:
            key = self.aliases[standard]
        return size_of(config, key, self.defaults.get(standard, default), least=least)

    def _experts(self, config: Mapping[str, Any]) -> Experts | None:
        if not self.sparse:
            return None
        ff = self._size(config, "moe_intermediate_size")
        shared = 0
        if "shared_up" in self.roles:
            if "shared_expert_intermediate_size" in self.defaults:
                shared = self._size(config, "shared_expert_intermediate_size", least=0)
            else:  # several shared experts side by side are one of their summed size
                shared = self._size(config, "n_shared_experts", least=0) * ff
        count = self._size(config, "num_experts")
        return Experts(count, min(count, self._size(config, "num_experts_per_tok")), ff, shared)

    def _latent(self, config: Mapping[str, Any]) -> Latent | None:
        if not self.latent:
            return None
        return Latent(
            None if self._query_rank(config) is None else self._size(config, "q_lora_rank"),
            self._size(config, "kv_lora_rank"),
            self._size(config, "qk_rope_head_dim"),
            self._size(config, "qk_nope_head_dim"),
            self._size(config, "v_head_dim"),
        )

    def _query_rank(self, config: Mapping[str, Any]) -> Any:
        """What the config states; a null means that queries are projected in one step."""
        return config.get("q_lora_rank", self.defaults.get("q_lora_rank"))

    def _linear(self, config: Mapping[str, Any]) -> LinearAttention | None:
        if self.attention is None or self.attention.other != "linear":
            return None
        return LinearAttention(
            self._size(config, "linear_num_key_heads"),
            self._size(config, "linear_num_value_heads"),
            self._size(config, "linear_key_head_dim"),
            self._size(config, "linear_value_head_dim"),
            self._size(config, "linear_conv_kernel_dim"),
        )

    def _is_sparse(self, config: Mapping[str, Any], layer: int) -> bool:
        if self.sparse == "after-first":
            return layer >= self._size(config, "first_k_dense_replace", least=0)
        if self.sparse == "step":
            dense = config.get("mlp_only_layers") or []
            if not isinstance(dense, list):
                raise BadInputError(f"config.json: mlp_only_layers is {shown(dense)}, expected a list of layers")
            return (layer + 1) % self._size(config, "decoder_sparse_step", 1) == 0 and layer not in dense
        return self.sparse == "all"

    def _windows(
        self, config: Mapping[str, Any], layers: int
    ) -> list[tuple[Literal["full", "sliding", "latent", "linear"], int | None]]:
        """Return what each layer attends with, and its window."""
        if self.attention is None:
            return [("latent" if self.latent else "full", None)] * layers
        pattern, window = self.attention, None
        if pattern.other == "sliding":
            stated = config.get("sliding_window", pattern.default_window)
            if not stated or (pattern.switch and not self.flag(config, pattern.switch)):
                return [("full", None)] * layers
            window = size_of({"sliding_window": stated}, "sliding_window")
        types = config.get("layer_types")
        if types is None:
            others = self._others(config, layers)
        elif isinstance(types, list) and len(types) == layers:
            names = {"full_attention": False, f"{pattern.other}_attention": True}
            if unknown := [t for t in types if not isinstance(t, str) or t not in names]:
                raise BadInputError(
                    f"config.json: layer_types names {shown(unknown[0])}, expected one of {', '.join(names)}"
                )
            others = [names[t] for t in types]
        else:
            raise BadInputError(f"config.json: layer_types is not a list of {layers} kinds, one a layer")
        return [(pattern.other, window) if other else ("full", None) for other in others]

    def _others(self, config: Mapping[str, Any], layers: int) -> list[bool]:
        """Whether each layer is of the pattern's other kind, where the config does not list them."""
        assert self.attention is not None
        pattern = self.attention
        key = next((k for k in pattern.every_keys if config.get(k) is not None), "")
        every = size_of(config, key) if key else pattern.every
        first = size_of(config, pattern.first_key, pattern.first, least=0) if pattern.first_key else 0
        before = size_of(config, pattern.before_key, pattern.before, least=0) if pattern.before_key else layers
        return [first <= i < before and (every == 0 or (i + 1) % every != 0) for i in range(layers)]


_NUMBER: Final = re.compile(r"\.\d+(?=\.|$)")
