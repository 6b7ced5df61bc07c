"""What ``info`` tells, and how it shows it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.checkpoint.capacity import CacheFacts, FlopFacts, MemoryNeed
from apt.checkpoint.sizes import Format
from apt.checkpoint.template import TemplateFacts
from apt.checkpoint.tokenizer_facts import TokenizerFacts
from apt.console.table import Table
from apt.console.units import format_bytes, format_count

if TYPE_CHECKING:
    from apt.checkpoint.pickle_scan import PickleScan


@dataclass(frozen=True, slots=True)
class PickleFacts:
    """A pickled file by its opcodes; see :class:`apt.checkpoint.pickle_scan.PickleScan`."""

    name: str
    size_bytes: int
    container: str
    parameters: int
    unexpected_imports: tuple[str, ...]
    running_opcodes: dict[str, int]
    complete: bool

    @classmethod
    def of(cls, scan: "PickleScan") -> "PickleFacts":
        """Return a scan without the list of its tensors."""
        parameters = sum(t.elements for t in scan.tensors)
        return cls(
            scan.path.name, scan.size_bytes, scan.container, parameters, scan.unexpected_imports,
            scan.running_opcodes, scan.complete,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # methods that nobody calls take milliseconds to make
class ModelFacts:
    """What ``info`` tells. What the files do not state, or no descriptor explains, is ``None`` or empty.

    :param parameters: elements of all stored tensors; a tied head that is not stored counts once.
    :param active_parameters: those that a token uses: of the experts, only as many as it visits.
    :param kv_groups: query heads that share one KV head.
    :param kv_bytes_per_token: bytes that a token adds to the cache while no window is full, in values of two bytes.
    :param kv: the cache at the context and batch that figures are given for.
    :param memory: memory to run the model in each precision; ``stored`` is as the files hold it.
    :param tied_configured: whether the config ties the head to the embedding; ``None`` where it does not say.
    :param tied_stored: whether the files hold no head of its own.
    :param contradictions: what config, generation config and tokenizer say of the special tokens that does not agree.
    :param problems: what was seen in passing that is wrong; a file that cannot be read at all is an error instead.
    :param pickles: pickled weight files, by their opcodes.
    :param lineage: operation, parent and date of a checkpoint that was made here.
    :param notes: what qualifies a figure.
    :param from_plugins: what plugins tell of the model.
    """

    name: str
    path: Path
    format: Format
    architecture: str
    parameters: int
    active_parameters: int | None
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
    experts: int | None
    experts_per_token: int | None
    vocab: int | None
    context: int | None
    kv_bytes_per_token: int | None
    kv: CacheFacts | None
    flops: FlopFacts | None
    memory: tuple[MemoryNeed, ...]
    tied_configured: bool | None
    tied_stored: bool | None
    tokenizer: TokenizerFacts | None
    template: TemplateFacts | None
    licence: str | None
    lineage: dict[str, Any] | None
    contradictions: tuple[str, ...]
    problems: tuple[str, ...]
    pickles: tuple[PickleFacts, ...]
    notes: tuple[str, ...]
    from_plugins: dict[str, str] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Return the facts, the parameters by component, the memory, and what is wrong or qualifies a figure."""
        rows = [
            ("format", self.format),
            ("architecture", self.architecture),
            ("parameters", self._parameters()),
            ("size", f"{format_bytes(self.size_bytes)} in {self.tensors} tensors"),
            ("dtypes", ", ".join(f"{k} {self._share(n)}" for k, n in self.parameters_by_dtype.items()) or "unknown"),
            ("layers", _shown(self.layers)),
            ("hidden size", _shown(self.hidden)),
            ("MLP size", self._mlp()),
            ("heads", self._heads()),
            ("context", "unknown" if self.context is None else f"{format_count(self.context)} tokens"),
            *self._cache_rows(),
            *self._flop_rows(),
            ("vocabulary", _shown(self.vocab)),
            ("head", self._head()),
            *self._tokenizer_rows(),
            *self._template_rows(),
            ("licence", self.licence or "not stated"),
            ("made by", lineage_line(self.lineage)),
            *self.from_plugins.items(),
        ]  # fmt: skip
        parts = [[part, format_count(n), self._share(n)] for part, n in self.parameters_by_component.items()]
        tables = [Table(self.name, ("fact", "value"), [list(row) for row in rows])]
        if parts:
            tables.append(Table("Parameters", ("component", "parameters", "share"), parts))
        if self.memory:
            tables.append(self._memory_table())
        if self.pickles:
            pickled = [[p.name, p.container, ", ".join(p.unexpected_imports) or "none"] for p in self.pickles]
            tables.append(Table("Pickles, not loaded", ("file", "kind", "runs beyond what tensors need"), pickled))
        for title, lines in (
            ("contradictions", self.contradictions),
            ("problems", self.problems),
            ("notes", self.notes),
        ):
            if lines:
                tables.append(Table("", (title,), [[line] for line in lines]))
        return tables

    def _parameters(self) -> str:
        if self.active_parameters in (None, self.parameters):
            return format_count(self.parameters)
        return f"{format_count(self.parameters)}, a token uses {format_count(self.active_parameters or 0)}"

    def _memory_table(self) -> Table:
        where = "" if self.kv is None else f" at {format_count(self.kv.context_tokens)} tokens × {self.kv.batch_rows}"
        rows = [
            [m.precision, format_bytes(m.weight_bytes), format_bytes(m.kv_bytes), format_bytes(m.total_bytes)]
            for m in self.memory
        ]
        return Table(f"Memory{where}", ("precision", "weights", "cache", "together"), rows)

    def _mlp(self) -> str:
        if self.experts is None:
            return _shown(self.ff)
        return f"{_shown(self.ff)}, {self.experts} experts of which a token visits {self.experts_per_token}"

    def _heads(self) -> str:
        if self.heads is None:
            return "unknown"
        groups = f"{_shown(self.kv_heads)} KV heads (groups of {_shown(self.kv_groups)})"
        return f"{self.heads} of size {_shown(self.head_dim)}, {groups}"

    def _share(self, parameters: int) -> str:
        return f"{100 * parameters / max(1, self.parameters):.1f} %"

    def _cache_rows(self) -> list[tuple[str, str]]:
        if self.kv_bytes_per_token is None:
            return [("KV cache", "unknown")]
        each = f"{format_count(self.kv_bytes_per_token)} bytes a token (fp16)"
        if self.kv is None:
            return [("KV cache", each)]
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kv.layers.items())
        window = f" of {format_count(self.kv.window_tokens)} tokens" if self.kv.window_tokens else ""
        at = f"{format_count(self.kv.context_tokens)} tokens × {self.kv.batch_rows}"
        return [
            ("KV cache", f"{each}, {format_bytes(self.kv.size_bytes)} at {at}"),
            ("attention layers", kinds + window),
        ]

    def _flop_rows(self) -> list[tuple[str, str]]:
        if self.flops is None:
            return [("FLOPs", "unknown")]
        f = self.flops
        prefill, decode = _scaled(f.prefill_flops_per_token), _scaled(f.decode_flops_per_token)
        return [("FLOPs a token", f"prefill {prefill}, decode {decode} at {format_count(f.context_tokens)} tokens")]

    def _head(self) -> str:
        stored = {None: "unknown", True: "not stored", False: "stored"}[self.tied_stored]
        tied = {None: "not stated", True: "tied to the embedding", False: "not tied"}[self.tied_configured]
        return f"{stored}, {tied} by the config"

    def _tokenizer_rows(self) -> list[tuple[str, str]]:
        t = self.tokenizer
        if t is None:
            return [("tokenizer", "none")]
        special = ", ".join(f"{role} {text!r}={t.special_ids.get(role, '?')}" for role, text in t.special.items())
        return [
            ("tokenizer", f"{t.kind or 'unknown'}, {_shown(t.tokens)} tokens"),
            ("special tokens", special or "none"),
        ]

    def _template_rows(self) -> list[tuple[str, str]]:
        t = self.template
        if t is None:
            return [("chat template", "none")]
        if not t.renders:
            return [("chat template", ("does not render: " if t.renders is False else "") + t.problem)]
        system = "takes" if t.takes_system else "refuses or drops"
        return [("chat template", f"renders, {system} a system message")]


def lineage_line(lineage: dict[str, Any] | None) -> str:
    """Return what made a checkpoint, of what, and when."""
    if lineage is None:
        return "elsewhere"
    parent = lineage.get("parent")
    of = f" of {parent['name']}" if isinstance(parent, dict) and parent.get("name") else ""
    return f"{lineage.get('operation', 'unknown')}{of}, {str(lineage.get('created', ''))[:10]}".rstrip(", ")


def _shown(value: int | None) -> str:
    return "unknown" if value is None else format_count(value)


def _scaled(flops: int) -> str:
    value, unit = float(flops), ""
    for larger in ("k", "M", "G", "T", "P"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}FLOP" if unit else f"{flops} FLOP"
