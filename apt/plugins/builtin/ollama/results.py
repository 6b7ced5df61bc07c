"""What the two operations return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apt.console.table import Table
from apt.evaluation.speed import Rate
from apt.evaluation.statistics import Estimate


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor that is not stored in the type that was asked for, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An export.

    :param written: false for a dry run.
    :param size_bytes: of the GGUF file; for a dry run, of its tensors.
    :param tensors: number of tensors by type.
    :param kept: matrices that the asked-for type cannot hold.
    :param notes: what llama.cpp does otherwise than transformers.
    """

    path: Path
    modelfile_path: Path
    type: str
    written: bool
    size_bytes: int
    source_size_bytes: int
    parameters: int
    bits_per_weight: float
    tensors: Mapping[str, int]
    tokenizer: str
    chat_template: bool
    kept: tuple[KeptTensor, ...] = ()
    notes: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """Return the tables shown to a person."""
        counts = ", ".join(f"{number} {kind}" for kind, number in self.tensors.items())
        rows = [
            ("GGUF", str(self.path)),
            ("Modelfile", str(self.modelfile_path)),
            ("type", f"{self.type} ({self.bits_per_weight:.2f} bits per weight)"),
            ("size", f"{self.size_bytes:,} bytes, the checkpoint's weights {self.source_size_bytes:,}"),
            ("tensors", counts),
            ("tokenizer", f"{self.tokenizer}{', with chat template' if self.chat_template else ''}"),
            *(("note", note) for note in self.notes),
        ]
        title = "Exported" if self.written else "Would be written"
        tables = [Table(title, ("what", "value"), rows)]
        if self.kept:
            kept = [(k.name, k.type, k.reason) for k in self.kept]
            tables.append(Table(f"Not stored as {self.type}", ("tensor", "type", "because"), kept))
        return tables


@dataclass(frozen=True, slots=True)
class TensorCheck:
    """All tensors compared with the checkpoint's.

    :param exact: tensors whose values are the source's, rounded once to the stored type.
    :param bounded: q8_0 tensors within half a step of each block.
    :param largest_error_steps: largest deviation in q8_0 tensors, in steps of the value's block; 0 without any.
    """

    tensors: int
    exact: int
    bounded: int
    largest_error_steps: float


@dataclass(frozen=True, slots=True)
class GreedyCheck:
    """Greedy generation in llama.cpp and in transformers.

    :param compared: tokens that were compared, all of them equal.
    :param ended_early: prompts that ended at a step whose two best logits are nearer than the margin.
    :param ended_by_rounding: prompts that ended where llama.cpp's 16-bit arithmetic turned the choice, but its f32
        arithmetic on the values of the same file does not.
    :param reference: ``checkpoint``, or ``checkpoint rounded to f16`` for one whose weights are finer.
    """

    prompts: int
    tokens_each: int
    compared: int
    ended_early: int
    ended_by_rounding: int
    margin: float
    reference: str


@dataclass(frozen=True, slots=True)
class PredictionCheck:
    """Predictions in llama.cpp against transformers in fp32 on the same tokens.

    :param kl: mean KL(checkpoint || GGUF), nats per token.
    :param agreement: share of tokens with the same most likely token.
    :param perplexity_change: perplexity of the GGUF over the checkpoint's, less 1.
    """

    tokens: int
    text: str
    kl: Estimate
    agreement: Estimate
    perplexity_checkpoint: Estimate
    perplexity_gguf: Estimate
    perplexity_change: float


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """A verification that was passed; one that was not raises ``CheckFailedError`` with its figures.

    :param llama_cpp: whether it was run there.
    :param decode: tokens that llama.cpp writes per second, one sequence at a time.
    """

    path: Path
    model: Path
    type: str
    size_bytes: int
    tensors: TensorCheck
    llama_cpp: Literal["run", "not installed", "skipped"]
    llama_cpp_version: str = ""
    tokenizer_texts: int = 0
    greedy: GreedyCheck | None = None
    predictions: PredictionCheck | None = None
    decode: Rate | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Return the table shown to a person."""
        t = self.tensors
        rows = [("tensors", f"{t.exact} of {t.tensors} exact, {t.bounded} within half a q8_0 step")]
        if t.bounded:
            rows.append(("largest q8_0 error", f"{t.largest_error_steps:.4f} steps"))
        rows.append(("llama.cpp", f"{self.llama_cpp} {self.llama_cpp_version}".strip()))
        if self.tokenizer_texts:
            rows.append(("tokenizer", f"{self.tokenizer_texts} texts give the same token ids"))
        if self.greedy:
            g = self.greedy
            rows.append(("greedy", f"{g.compared} tokens of {g.prompts} prompts equal to the {g.reference}'s"))
            if g.ended_early or g.ended_by_rounding:
                ends = f"{g.ended_early} at a margin under {g.margin}, {g.ended_by_rounding} at llama.cpp's rounding"
                rows.append(("prompts ended early", ends))
        if self.predictions:
            p = self.predictions
            rows += [
                ("mean KL", f"{p.kl.format(6)} nats over {p.tokens:,} tokens of {p.text}"),
                ("same top token", p.agreement.format(4)),
                ("perplexity", f"{p.perplexity_gguf.format(4)}, checkpoint {p.perplexity_checkpoint.value:.4f}"),
                ("perplexity change", f"{100 * p.perplexity_change:+.3f} %"),
            ]
        if self.decode:
            rows.append(("writing speed", f"{self.decode.format()} tokens/s in llama.cpp"))
        return [Table(f"Verified {self.path.name}", ("check", "figure"), rows)]
