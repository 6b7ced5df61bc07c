"""Facts of a model that its headers and JSON files tell: no weights, no torch, no transformers, no numpy."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.architecture import Architecture, Dimensions, descriptor
from apt.checkpoint.architecture.flops import active_parameters
from apt.checkpoint.capacity import cache_facts, default_context, flop_facts, memory_needs
from apt.checkpoint.diagnosis_config import config_findings
from apt.checkpoint.diagnosis_files import marked_files
from apt.checkpoint.fact_sheet import ModelFacts, PickleFacts
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.licence import licence_of
from apt.checkpoint.reader import INDEX_NAME, PICKLE_SUFFIXES, Checkpoint, read_json
from apt.checkpoint.sizes import (
    TensorGroup,
    component_function,
    display_name,
    gguf_config,
    open_model,
    precisions,
    sums_by_key,
    tensor_groups,
)  # fmt: skip
from apt.checkpoint.special_ids import special_id_contradictions
from apt.checkpoint.template import TemplateFacts, try_template
from apt.checkpoint.tokenizer_facts import TokenizerFacts, chat_template, gguf_tokenizer, read_tokenizer
from apt.console.errors import AptError, BadInputError, UnsupportedError, shown
from apt.store import resolve

if TYPE_CHECKING:
    from apt.checkpoint.pickle_scan import PickleScan

#: Pickles beyond these are not scanned.
_MOST_PICKLES: Final = 64


def model_facts(ref: str, *, context: int | None = None, batch: int = 1) -> ModelFacts:
    """Read the facts of a model; errors as :func:`apt.checkpoint.sizes.open_model`.

    :param context: tokens that cache, FLOPs and memory are given for; the model's context, at most 8,192, when absent.
    :param batch: sequences side by side.
    """
    path = resolve(ref)
    name = display_name(ref, path)
    pickles = list(_scans(path))
    if pickles and (path.is_file() or not _has_safetensors(path)):
        return _pickle_facts(pickles, path, name, context, batch)
    model = open_model(ref)
    if isinstance(model, GGUFFile):
        return _gguf_facts(model, name, context, batch)
    return _checkpoint_facts(model, name, context, batch, tuple(PickleFacts.of(scan) for scan in pickles))


def _checkpoint_facts(
    checkpoint: Checkpoint, name: str, context: int | None, batch: int, pickles: tuple[PickleFacts, ...]
) -> ModelFacts:
    config = checkpoint.config
    notes: list[str] = []
    known = _described(config, checkpoint.path, notes, context, batch)
    packed = isinstance(config.get("quantization_config"), Mapping)
    if packed:
        notes.append("the weights are packed by a quantiser: parameters are counted as stored")
        known |= {"active_parameters": None}
    elif known:
        architecture = checkpoint.architecture
        beyond = _beyond_the_layers(checkpoint, architecture, known["layers"])
        if beyond:
            notes.append(f"{beyond:,} parameters are in layers that the config does not count (multi-token prediction)")
        known["tied_stored"] = architecture.head not in checkpoint.tensors
        known["active_parameters"] = active_parameters(architecture, config, checkpoint.parameters - beyond)
    tokenizer = read_tokenizer(checkpoint.path)
    cache = known.get("kv")
    return ModelFacts(
        name=name,
        path=checkpoint.path,
        format="safetensors",
        architecture=_family(config),
        parameters=checkpoint.parameters,
        size_bytes=checkpoint.size_bytes,
        memory=() if cache is None else memory_needs(precisions(checkpoint), cache.size_bytes),
        tokenizer=tokenizer,
        template=_template(chat_template(checkpoint.path), tokenizer),
        licence=licence_of(checkpoint.path),
        lineage=_short_lineage(checkpoint.lineage),
        contradictions=_contradictions(checkpoint, tokenizer),
        problems=tuple(_problems(checkpoint)),
        pickles=pickles,
        notes=tuple(notes),
        **_grouped(tensor_groups(checkpoint)),
        **_sizes(known),
    )


def _gguf_facts(file: GGUFFile, name: str, context: int | None, batch: int) -> ModelFacts:
    notes: list[str] = []
    tokenizer = gguf_tokenizer(file.metadata)
    tied = "output.weight" not in file.tensors
    known = _stated_by_gguf(file, tokenizer, notes)
    config = gguf_config(file)
    if config is not None:
        stated = {key: value for key, value in known.items() if value is not None}
        known = _described(config, file.path, notes, context, batch) | stated
    elif window := _whole(file.field("attention.sliding_window")):
        notes.append(f"layers with a sliding window cache {window} tokens at most")
    known |= {"tied_configured": tied, "tied_stored": tied}
    licence = file.metadata.get("general.license")
    template = file.metadata.get("tokenizer.chat_template")
    cache = known.get("kv")
    return ModelFacts(
        name=name,
        path=file.path,
        format="gguf",
        architecture=file.architecture or "unknown",
        parameters=file.parameters,
        size_bytes=file.size_bytes,
        memory=() if cache is None else memory_needs(precisions(file), cache.size_bytes),
        tokenizer=tokenizer,
        template=_template(template if isinstance(template, str) else None, tokenizer),
        licence=licence if isinstance(licence, str) else None,
        lineage=None,
        contradictions=(),
        problems=(),
        pickles=(),
        notes=tuple(notes),
        **_grouped(tensor_groups(file)),
        **_sizes(known),
    )


def _pickle_facts(scans: list["PickleScan"], path: Path, name: str, context: int | None, batch: int) -> ModelFacts:
    directory = path if path.is_dir() else path.parent
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    notes = ["read by its opcodes, nothing was unpickled; convert it once: apt_model huggingface import"]
    known = _described(config, path, notes, context, batch)
    component = component_function(config, str(path))
    groups: dict[tuple[str, str], list[int]] = {}
    # A trainer leaves its state and arguments beside the weights.
    weights = [s for s in scans if s.path.name.startswith("pytorch_model")] or scans
    for tensor in (t for scan in weights for t in scan.tensors):
        entry = groups.setdefault((component(tensor.name), tensor.dtype), [0, 0])
        entry[0] += 1
        entry[1] += tensor.elements
    if not all(scan.complete for scan in weights):
        notes.append("a pickle is too long to be followed to its end: parameters are missing from the count")
    tokenizer = read_tokenizer(directory)
    return ModelFacts(
        name=name,
        path=path,
        format="pickle",
        architecture=_family(config),
        parameters=sum(t.elements for scan in weights for t in scan.tensors),
        size_bytes=sum(scan.size_bytes for scan in weights),
        memory=(),
        tokenizer=tokenizer,
        template=_template(chat_template(directory), tokenizer),
        licence=licence_of(directory),
        lineage=None,
        contradictions=(),
        problems=tuple(
            f"{scan.path.name} would run code when it is loaded: {', '.join(scan.unexpected_imports[:5])}"
            for scan in scans
            if scan.unexpected_imports
        ),
        pickles=tuple(PickleFacts.of(scan) for scan in scans),
        notes=tuple(notes),
        **_grouped(TensorGroup(part, dtype, n, elements, 0) for (part, dtype), (n, elements) in groups.items()),
        **_sizes(known),
    )


def _described(
    config: Mapping[str, Any], path: Path, notes: list[str], context: int | None, batch: int
) -> dict[str, Any]:
    """Return what the family's descriptor makes of a config; what stands in the way goes to the notes."""
    try:
        architecture = descriptor(config, where=str(path))
        d = architecture.dimensions(config)
        tokens = context or default_context(d.context)
        cache = cache_facts(architecture, config, tokens, batch)
        flops = flop_facts(architecture, config, tokens)
    except UnsupportedError:
        family = config.get("model_type")
        unnamed = "config.json names no model_type" if config else "no config.json"
        why = f"the architecture {_family(config)!r} is not known" if family else unnamed
        notes.append(f"{why}: components and sizes are left out")
        return {}
    except BadInputError as error:
        notes.append(str(error))
        return {}
    if tokens > d.context:
        notes.append(f"the model was made for {d.context:,} tokens, figures are given for {tokens:,}")
    return {**_dimensions(d), "kv_bytes_per_token": cache.bytes_per_token, "kv": cache, "flops": flops}


def _dimensions(d: Dimensions) -> dict[str, Any]:
    return {
        "layers": d.layers, "hidden": d.hidden, "heads": d.heads, "kv_heads": 1 if d.latent else d.kv_heads,
        "head_dim": d.head_dim, "ff": d.experts.ff if d.experts else d.ff, "vocab": d.vocab, "context": d.context,
        "tied_configured": d.tied, "experts": d.experts.count if d.experts else None,
        "experts_per_token": d.experts.per_token if d.experts else None,
    }  # fmt: skip


def _stated_by_gguf(file: GGUFFile, tokenizer: TokenizerFacts | None, notes: list[str]) -> dict[str, Any]:
    """Return the sizes that the metadata states, whatever the family."""
    layers, heads = _whole(file.field("block_count")), _whole(file.field("attention.head_count"))
    hidden = _whole(file.field("embedding_length"))
    kv_field = file.field("attention.head_count_kv", heads)
    head_dim = _whole(file.field("attention.key_length")) or (hidden // heads if hidden and heads else None)
    if not isinstance(kv_field, int) and kv_field is not None:
        notes.append("the layers have different numbers of heads")
    return {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": _whole(kv_field), "head_dim": head_dim,
        "ff": _whole(file.field("feed_forward_length")), "context": _whole(file.field("context_length")),
        "vocab": _whole(file.field("vocab_size")) or (tokenizer.tokens if tokenizer else None),
        "experts": _whole(file.field("expert_count")), "experts_per_token": _whole(file.field("expert_used_count")),
    }  # fmt: skip


def _beyond_the_layers(checkpoint: Checkpoint, architecture: Architecture, layers: int) -> int:
    """Count parameters of layers that the config does not count; DeepSeek-V3 keeps its extra predictor there."""
    return sum(t.elements for n, t in checkpoint.tensors.items() if (architecture.layer_of(n) or 0) >= layers)


def _contradictions(checkpoint: Checkpoint, tokenizer: TokenizerFacts | None) -> tuple[str, ...]:
    try:
        embedding = checkpoint.tensors.get(checkpoint.architecture.embedding)
    except UnsupportedError:
        embedding = None
    rows = (
        embedding.shape[0] if embedding is not None and embedding.shape else _whole(checkpoint.config.get("vocab_size"))
    )
    return tuple(c.text for c in special_id_contradictions(checkpoint.config, checkpoint.path, tokenizer, rows))


def _problems(checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong without being in the way of reading: see :attr:`ModelFacts.problems`."""
    try:
        for finding in config_findings(checkpoint):
            if finding.code != "unknown-architecture":
                yield f"{finding.where}: {finding.evidence}"
    except BadInputError:
        pass  # told by the notes
    for path in marked_files(checkpoint.path):
        yield f"{path.name}: begins with a byte order mark, which JSON forbids"
    index = checkpoint.path / INDEX_NAME
    if index.is_file():
        yield from _index_problems(checkpoint, read_json(index))


def _index_problems(checkpoint: Checkpoint, index: Mapping[str, Any]) -> Iterator[str]:
    metadata = index.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(t.size_bytes for t in checkpoint.tensors.values())
    if isinstance(stated, int) and stated != total:
        yield f"{INDEX_NAME}: total_size is {shown(stated)}, the tensors take {total}"
    named = {p.name for p in checkpoint.weight_files}
    for path in sorted(checkpoint.path.glob("*.safetensors")):
        if path.name not in named:
            yield f"{path.name}: not named by the index, its tensors are not loaded"


def _has_safetensors(directory: Path) -> bool:
    return (directory / INDEX_NAME).exists() or (directory / "model.safetensors").exists()


def _scans(path: Path) -> "Iterator[PickleScan]":
    """Scan a pickled file, or those that lie in a directory; one that is no pickle is not told of there."""
    within = path.iterdir() if path.is_dir() else [path]
    found = sorted(p for p in within if p.suffix in PICKLE_SUFFIXES and p.is_file())[:_MOST_PICKLES]
    for each in found:
        from apt.checkpoint.pickle_scan import scan_pickle

        try:
            yield scan_pickle(each)
        except (AptError, OSError):
            if path.is_file() or not _has_safetensors(path):
                raise


def _template(template: str | None, tokenizer: TokenizerFacts | None) -> TemplateFacts | None:
    return None if template is None else try_template(template, tokenizer.special if tokenizer is not None else {})


def _family(config: Mapping[str, Any]) -> str:
    name = str(config.get("model_type") or "unknown")
    return name if len(name) <= 80 else f"{name[:79]}…"


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
    "active_parameters", "layers", "hidden", "heads", "kv_heads", "head_dim", "ff", "experts", "experts_per_token",
    "vocab", "context", "kv_bytes_per_token", "kv", "flops", "tied_configured", "tied_stored",
)  # fmt: skip


def _sizes(known: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: known.get(name) for name in _SIZES}
    heads, kv_heads = found["heads"], found["kv_heads"]
    return {**found, "kv_groups": heads // kv_heads if heads and kv_heads else None}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _short_lineage(lineage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if lineage is None:
        return None
    kept = ("operation", "created", "parent", "ancestors", "metrics")
    return {key: lineage[key] for key in kept if key in lineage}
