"""The operation ``export-gguf``: a Llama, Mistral or Qwen checkpoint as GGUF with a Modelfile."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apt.checkpoint.architecture import Dimensions
from apt.checkpoint.atomic import atomic_directory
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UsageError
from apt.console.progress import Bar, progress
from apt.plugins.builtin.ollama import modelfile
from apt.plugins.builtin.ollama.mapping import (
    PlannedTensor,
    check_config,
    model_metadata,
    plan_tensors,
    rotary_scaling,
)
from apt.plugins.builtin.ollama.options import ExportOptions
from apt.plugins.builtin.ollama.results import ExportResult, KeptTensor
from apt.plugins.builtin.ollama.tensors import (
    TensorType,
    choose_type,
    encode,
    largest_magnitude,
    source_chunks,
    stored_bytes,
)
from apt.plugins.builtin.ollama.tokenizer import Vocabulary, read_vocabulary
from apt.plugins.builtin.ollama.writer import FileTensor, write_gguf

#: Divisors of the rotary frequencies (Llama 3.1), where a model has them.
ROPE_FACTORS: Final = "rope_freqs.weight"
_TYPES: Final[dict[str, TensorType]] = {"q8_0": "Q8_0", "f16": "F16", "bf16": "BF16", "f32": "F32"}


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided before the first byte is written."""

    checkpoint: Checkpoint
    sizes: Dimensions
    name: str
    type: TensorType
    tensors: tuple[FileTensor, ...]
    kept: tuple[KeptTensor, ...]
    factors: tuple[float, ...] | None
    vocabulary: Vocabulary
    modelfile: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def export_gguf(options: ExportOptions) -> ExportResult:
    """Write ``output/NAME.gguf`` and ``output/Modelfile``; the directory appears whole or not at all.

    :raises UnsupportedError: for what llama.cpp would compute or tokenize otherwise.
    :raises BadInputError: for missing, misshapen or non-finite tensors, by name.
    :raises TargetExistsError: when the directory exists and ``overwrite`` is false.
    """
    plan = make_plan(options)
    file_name = f"{plan.name}.gguf"
    with atomic_directory(options.output, overwrite=options.overwrite, sources=[plan.checkpoint.path]) as directory:
        metadata = {**model_metadata(plan.checkpoint, plan.sizes, plan.name), **plan.vocabulary.metadata()}
        with progress(f"writing {file_name}", plan.size_bytes, "bytes") as bar:
            architecture = plan.checkpoint.architecture.gguf_name
            assert architecture is not None  # check_config refused the others
            write_gguf(directory / file_name, architecture, metadata, plan.type, plan.tensors, _data(plan, bar))
        (directory / "Modelfile").write_text(plan.modelfile, encoding="utf-8")
        size_bytes = (directory / file_name).stat().st_size
    return _result(plan, options.output, size_bytes, written=True)


def plan_export(options: ExportOptions) -> ExportResult:
    """Return what :func:`export_gguf` would write, having read everything and written nothing."""
    plan = make_plan(options)
    return _result(plan, options.output, plan.size_bytes, written=False)


def make_plan(options: ExportOptions) -> Plan:
    """Decide names, types and metadata; reads every weight once."""
    checkpoint = Checkpoint.open(options.model)
    name = _file_name(options.name or checkpoint.name)
    sizes = check_config(checkpoint)
    sources = plan_tensors(checkpoint, sizes)
    vocabulary = read_vocabulary(checkpoint, sizes.vocab)
    text = options.modelfile_template.replace("{gguf}", f"{name}.gguf") or modelfile.render(
        modelfile.describe(checkpoint, f"{name}.gguf", sizes.context)
    )
    wanted = _TYPES[options.type]
    tensors, kept = _decide_types(checkpoint, sources, wanted)
    factors = rotary_scaling(checkpoint, sizes).factors
    if factors:
        tensors.append(FileTensor(ROPE_FACTORS, (len(factors),), "F32", 4 * len(factors)))
    return Plan(checkpoint, sizes, name, wanted, tuple(tensors), tuple(kept), factors, vocabulary, text)


def _file_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in name for c in "/\\\0\n"):
        raise UsageError(f"{name!r} cannot be the name of a file", hint="give another by --name")
    return name


def _decide_types(
    checkpoint: Checkpoint, sources: list[PlannedTensor], wanted: TensorType
) -> tuple[list[FileTensor], list[KeptTensor]]:
    tensors, kept = [], []
    with progress("reading tensors", len(sources), "tensors") as bar:
        for source in sources:
            kind, reason = choose_type(source, wanted, largest_magnitude(checkpoint, source))
            tensors.append(FileTensor(source.name, source.shape, kind, stored_bytes(source, kind), source))
            if reason:
                kept.append(KeptTensor(source.name, kind.lower(), reason))
            bar.advance()
    return tensors, kept


def _data(plan: Plan, bar: Bar) -> Iterator[Iterator[bytes]]:
    for tensor in plan.tensors:
        yield _pieces(plan, tensor)
        bar.advance(tensor.size_bytes)


def _pieces(plan: Plan, tensor: FileTensor) -> Iterator[bytes]:
    if tensor.source is None:
        import numpy as np

        yield np.asarray(plan.factors, "<f4").tobytes()
        return
    for chunk in source_chunks(plan.checkpoint, tensor.source):
        yield encode(chunk, tensor.type)


def _result(plan: Plan, output: Path, size_bytes: int, *, written: bool) -> ExportResult:
    parameters = sum(t.source.rows * t.source.row_length for t in plan.tensors if t.source)
    counts: Any = Counter(tensor.type.lower() for tensor in plan.tensors)
    v = plan.vocabulary
    return ExportResult(
        path=output / f"{plan.name}.gguf",
        modelfile_path=output / "Modelfile",
        type=plan.type.lower(),
        written=written,
        size_bytes=size_bytes,
        source_size_bytes=plan.checkpoint.size_bytes,
        parameters=parameters,
        bits_per_weight=8 * plan.size_bytes / parameters,
        tensors=dict(sorted(counts.items())),
        tokenizer=f"{v.model} ({v.pre})" if v.model == "gpt2" else f"{v.model} (SentencePiece BPE)",
        chat_template=bool(v.chat_template),
        kept=plan.kept,
        notes=v.notes,
    )
