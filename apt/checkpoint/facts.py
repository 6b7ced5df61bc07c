"""Facts of a model that its headers and JSON files tell: no weights, no torch, no transformers, no numpy."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import Format, TensorGroup, display_name, open_model, sums_by_key, tensor_groups
from apt.checkpoint.tokenizer_facts import TokenizerFacts, gguf_tokenizer, read_tokenizer
from apt.console.errors import BadInputError, UnsupportedError
from apt.console.table import Table
from apt.console.units import format_bytes, format_count
from apt.store import resolve

#: A cached value of the KV cache takes two bytes (fp16, bf16) unless the runtime is told otherwise.
KV_BYTES_PER_VALUE: Final = 2


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What ``info`` tells. Sizes that the files do not state, or that no descriptor explains, are ``None``.

    :param parameters: elements of all stored tensors; a tied head that is not stored counts once.
    :param kv_groups: query heads that share one KV head.
    :param kv_bytes_per_token: bytes that a token adds to a full fp16 KV cache.
    :param tied_configured: whether the config ties the head to the embedding; ``None`` where it does not say.
    :param tied_stored: whether the files hold no head of its own.
    :param lineage: operation, parent and date of a checkpoint that was made here.
    :param notes: what qualifies a figure.
    :param from_plugins: what plugins add, by what they call it.
    """

    name: str
    path: Path
    format: Format
    architecture: str
    parameters: int
    parameters_by_component: dict[str, int]
    parameters_by_dtype: dict[str, int]
    tensors: int
    size_bytes: int
    layers: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    kv_groups: int | None
    head_dim: int | None
    ff: int | None
    vocab: int | None
    context: int | None
    kv_bytes_per_token: int | None
    tied_configured: bool | None
    tied_stored: bool | None
    tokenizer: TokenizerFacts | None
    licence: str | None
    lineage: dict[str, Any] | None
    notes: tuple[str, ...]
    from_plugins: dict[str, str] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Return the facts, the parameters by component and what qualifies them."""
        rows = [
            ("format", self.format),
            ("architecture", self.architecture),
            ("parameters", format_count(self.parameters)),
            ("size", f"{format_bytes(self.size_bytes)} in {self.tensors} tensors"),
            ("dtypes", ", ".join(f"{k} {self._share(n)}" for k, n in self.parameters_by_dtype.items())),
            ("layers", _shown(self.layers)),
            ("hidden size", _shown(self.hidden)),
            ("MLP size", _shown(self.ff)),
            ("heads", self._heads()),
            ("context", "unknown" if self.context is None else f"{format_count(self.context)} tokens"),
            ("KV cache", self._kv()),
            ("vocabulary", _shown(self.vocab)),
            ("head", self._head()),
            *self._tokenizer_rows(),
            ("licence", self.licence or "not stated"),
            ("made by", _lineage_line(self.lineage)),
            *self.from_plugins.items(),
        ]  # fmt: skip
        parts = [[part, format_count(n), self._share(n)] for part, n in self.parameters_by_component.items()]
        tables = [Table(self.name, ("fact", "value"), [list(row) for row in rows])]
        if parts:
            tables.append(Table("Parameters", ("component", "parameters", "share"), parts))
        if self.notes:
            tables.append(Table("", ("notes",), [[note] for note in self.notes]))
        return tables

    def _heads(self) -> str:
        if self.heads is None:
            return "unknown"
        groups = f"{_shown(self.kv_heads)} KV heads (groups of {_shown(self.kv_groups)})"
        return f"{self.heads} of size {_shown(self.head_dim)}, {groups}"

    def _share(self, parameters: int) -> str:
        return f"{100 * parameters / max(1, self.parameters):.1f} %"

    def _kv(self) -> str:
        if self.kv_bytes_per_token is None:
            return "unknown"
        each = f"{format_count(self.kv_bytes_per_token)} bytes a token (fp16)"
        return (
            each
            if self.context is None
            else f"{each}, {format_bytes(self.kv_bytes_per_token * self.context)} when full"
        )

    def _head(self) -> str:
        stored = {None: "unknown", True: "not stored", False: "stored"}[self.tied_stored]
        tied = {None: "not stated", True: "tied to the embedding", False: "not tied"}[self.tied_configured]
        return f"{stored}, {tied} by the config"

    def _tokenizer_rows(self) -> list[tuple[str, str]]:
        t = self.tokenizer
        if t is None:
            return [("tokenizer", "none")]
        special = ", ".join(f"{role} {text!r}={t.special_ids.get(role, '?')}" for role, text in t.special.items())
        template = "with" if t.chat_template else "without"
        return [
            ("tokenizer", f"{t.kind or 'unknown'}, {_shown(t.tokens)} tokens, {template} chat template"),
            ("special tokens", special or "none"),
        ]


def model_facts(ref: str) -> ModelFacts:
    """Read the facts of a model; errors as :func:`open_model`."""
    model = open_model(ref)
    name = display_name(ref, resolve(ref))
    return _gguf_facts(model, name) if isinstance(model, GGUFFile) else _checkpoint_facts(model, name)


def _checkpoint_facts(checkpoint: Checkpoint, name: str) -> ModelFacts:
    config = checkpoint.config
    notes: list[str] = []
    dimensions: dict[str, Any] = {}
    try:
        architecture = checkpoint.architecture
        d = architecture.dimensions(config)
        dimensions = {
            "layers": d.layers, "hidden": d.hidden, "heads": d.heads, "kv_heads": d.kv_heads, "head_dim": d.head_dim,
            "ff": d.ff, "vocab": d.vocab, "context": d.context, "tied_configured": d.tied,
            "kv_bytes_per_token": architecture.kv_bytes_per_token(config, KV_BYTES_PER_VALUE),
            "tied_stored": architecture.head not in checkpoint.tensors,
        }  # fmt: skip
    except UnsupportedError:
        family = config.get("model_type")
        unnamed = "config.json names no model_type" if (checkpoint.path / "config.json").exists() else "no config.json"
        why = f"the architecture {family!r} is not known" if family else unnamed
        notes.append(f"{why}: components and sizes are left out")
    except BadInputError as error:
        notes.append(str(error))
    if isinstance(config.get("quantization_config"), Mapping):
        notes.append("the weights are packed by a quantiser: parameters are counted as stored")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        notes.append(f"layers with a sliding window cache {config['sliding_window']} tokens at most")
    groups = tensor_groups(checkpoint)
    return ModelFacts(
        name=name,
        path=checkpoint.path,
        format="safetensors",
        architecture=str(config.get("model_type") or "unknown"),
        parameters=checkpoint.parameters,
        size_bytes=checkpoint.size_bytes,
        tokenizer=read_tokenizer(checkpoint.path),
        licence=licence_of(checkpoint.path),
        lineage=_short_lineage(checkpoint.lineage),
        notes=tuple(notes),
        **_grouped(groups),
        **_sizes(dimensions),
    )


def _gguf_facts(file: GGUFFile, name: str) -> ModelFacts:
    layers, heads = _whole(file.field("block_count")), _whole(file.field("attention.head_count"))
    hidden = _whole(file.field("embedding_length"))
    kv_field = file.field("attention.head_count_kv", heads)
    kv_heads = _whole(kv_field)
    head_dim = _whole(file.field("attention.key_length")) or (hidden // heads if hidden and heads else None)
    value_dim = _whole(file.field("attention.value_length")) or head_dim
    kv_bytes = None
    notes = []
    if layers and kv_heads and head_dim and value_dim:
        kv_bytes = layers * kv_heads * (head_dim + value_dim) * KV_BYTES_PER_VALUE
    elif not isinstance(kv_field, int):
        notes.append("the layers have different numbers of heads")
    if window := _whole(file.field("attention.sliding_window")):
        notes.append(f"layers with a sliding window cache {window} tokens at most")
    tokenizer = gguf_tokenizer(file.metadata)
    licence = file.metadata.get("general.license")
    tied = "output.weight" not in file.tensors
    dimensions = {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "ff": _whole(file.field("feed_forward_length")), "context": _whole(file.field("context_length")),
        "vocab": _whole(file.field("vocab_size")) or (tokenizer.tokens if tokenizer else None),
        "kv_bytes_per_token": kv_bytes, "tied_configured": tied, "tied_stored": tied,
    }  # fmt: skip
    return ModelFacts(
        name=name,
        path=file.path,
        format="gguf",
        architecture=file.architecture or "unknown",
        parameters=file.parameters,
        size_bytes=file.size_bytes,
        tokenizer=tokenizer,
        licence=licence if isinstance(licence, str) else None,
        lineage=None,
        notes=tuple(notes),
        **_grouped(tensor_groups(file)),
        **_sizes(dimensions),
    )


def _grouped(groups: Iterable[TensorGroup]) -> dict[str, Any]:
    groups = tuple(groups)
    parts = sums_by_key((g.component, g.parameters) for g in groups)
    dtypes = Counter(sums_by_key((g.dtype, g.parameters) for g in groups))
    return {
        "parameters_by_component": {} if set(parts) == {"unknown"} else parts,
        "parameters_by_dtype": dict(dtypes.most_common()),
        "tensors": sum(g.tensors for g in groups),
    }


_SIZES: Final = (
    "layers", "hidden", "heads", "kv_heads", "head_dim", "ff", "vocab", "context", "kv_bytes_per_token",
    "tied_configured", "tied_stored",
)  # fmt: skip


def _sizes(known: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: known.get(name) for name in _SIZES}
    heads, kv_heads = found["heads"], found["kv_heads"]
    return {**found, "kv_groups": heads // kv_heads if heads and kv_heads else None}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _shown(value: int | None) -> str:
    return "unknown" if value is None else format_count(value)


def _short_lineage(lineage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if lineage is None:
        return None
    kept = ("operation", "created", "parent", "ancestors", "metrics")
    return {key: lineage[key] for key in kept if key in lineage}


def _lineage_line(lineage: Mapping[str, Any] | None) -> str:
    if lineage is None:
        return "elsewhere"
    parent = lineage.get("parent")
    of = f" of {parent['name']}" if isinstance(parent, Mapping) and parent.get("name") else ""
    return f"{lineage.get('operation', 'unknown')}{of}, {str(lineage.get('created', ''))[:10]}".rstrip(", ")


_LICENCE_LINE: Final = re.compile(r"^license(?:_name)?:\s*[\"']?([^\"'\n]+?)[\"']?\s*$", re.MULTILINE)


def licence_of(directory: Path) -> str | None:
    """Return the licence that the model card's front matter names, else the first line of the licence file."""
    card = directory / "README.md"
    if card.is_file():
        front = card.read_text(encoding="utf-8", errors="replace")[:20_000].split("\n---", 1)[0]
        if front.startswith("---") and (match := _LICENCE_LINE.search(front)):
            return match.group(1)
    for name in ("LICENSE", "LICENSE.txt"):
        if (directory / name).is_file():
            text = (directory / name).read_text(encoding="utf-8", errors="replace")[:4000]
            return next((line.strip() for line in text.splitlines() if line.strip()), None)
    return None
