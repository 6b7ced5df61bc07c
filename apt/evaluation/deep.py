"""``debug --deep``: the model is run, and what it does names the faults that files and values do not show."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.diagnosis import Diagnosis, diagnose, parent_findings, unreadable
from apt.checkpoint.findings import Finding, error, note, warning
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import open_model
from apt.console.errors import BadInputError, NotFoundError, UnsupportedError, first_line
from apt.console.progress import progress
from apt.evaluation.activations import module_ranges, range_findings, silence_findings
from apt.evaluation.behaviour import cache_equals_full
from apt.evaluation.checking import check_text_ref
from apt.evaluation.forward import ForwardError, forward_told
from apt.evaluation.hypotheses import Hypothesis, hypotheses
from apt.evaluation.texts import FEWEST_TOKENS, Rows, context_of, load_rows

if TYPE_CHECKING:
    import torch

#: Tokens of a row.
WINDOW: Final = 256
#: Rows that a hypothesis is scored on: at least, in large models, and at most.
ROWS: Final = (4, 16)
#: Rows scored at a time, and pieces of a row that count as one observation.
BATCH_ROWS: Final = 1
PIECES: Final = 4
#: Floating-point operations that scoring hypotheses may take in all: seconds for a model of some million parameters,
#: minutes for one of a billion. A figure and not a time, so that the same model gets the same answer everywhere.
FLOP_BUDGET: Final = 3e13
#: A hypothesis holds when the text becomes likelier by this share of the loss, and by so many standard errors of the
#: differences between rows. Sound trained models lose by every change; random ones move by far less.
GAIN_SHARE: Final = 0.01
GAIN_ERRORS: Final = 4.0
#: A hypothesis is believed only where the mended model knows the text: its loss is below this share of the loss of one
#: that knows nothing (uniform over the vocabulary).
INFORMED_SHARE: Final = 0.85
#: Temperatures at which losses are compared; the first is the model's own.
TEMPERATURES: Final = (1.0, 1.6, 2.6)
#: Nats a token by which a model may be worse than one that knows nothing (uniform over the vocabulary).
WORSE_THAN_UNIFORM: Final = 1.0


def diagnose_deeply(ref: str, *, text: str = "embedded") -> Diagnosis:
    """The static pass, then the model in fp32 on a text: ranges, silent units, KV cache, hypotheses.

    :param text: what the hypotheses are judged on: ``embedded``, or a file (``.txt``, ``.jsonl``).
    :raises NotFoundError: when there is no such model or text.
    """
    check_text_ref(text)
    found = diagnose(ref)
    try:
        model = open_model(ref)
    except (BadInputError, NotFoundError, UnsupportedError):  # told by the static pass
        return found
    if isinstance(model, GGUFFile):
        told = note(
            "not-run", found.path.name, "a GGUF is not run here", "only checkpoints are",
            "apt_model ollama verify runs it beside its checkpoint",
        )  # fmt: skip
        return found.plus((), [told])
    import torch

    try:
        loaded = model.load(dtype=torch.float32)
    except (BadInputError, UnsupportedError) as problem:
        broken = any(f.severity == "error" for f in found.findings)
        return found.plus((), [] if broken else [unreadable(found.path, problem, "loading")])
    try:
        with forward_told(loaded):
            checked, findings = deep_findings(model, loaded, text)
    except ForwardError as problem:
        checked, findings = ["forward pass"], [_raises(loaded, problem)]
    except BadInputError as problem:  # the config has what no descriptor takes; the static pass tells of it, too
        broken = any(f.severity == "error" for f in found.findings)
        checked, findings = [], [] if broken else [unreadable(found.path, problem, "running")]
    return found.plus((*checked, "parent"), [*findings, *parent_findings(model)])


def deep_findings(checkpoint: Checkpoint, model: Any, text: str = "embedded") -> tuple[list[str], list[Finding]]:
    """Return what was looked at and what was found in a loaded model."""
    from apt.checkpoint.loading import quiet_transformers

    with quiet_transformers():
        rows = _rows(checkpoint, text)
        ids = _probe_ids(checkpoint, rows).to(model.device)
        checked, findings = ["activations"], list(range_findings(module_ranges(model, ids)))
        if any(f.severity == "error" for f in findings):
            return checked, findings
        checked.append("KV cache")
        findings += _cache_findings(model, ids[:1, :32])
        try:
            architecture = checkpoint.architecture
        except UnsupportedError:
            return checked, findings
        if not architecture.uniform:  # experts, latent or linear attention: the checks below know plain layers only
            return checked, findings
        checked.append("silent units")
        findings += silence_findings(model, architecture, ids)
        if rows is None:
            return checked, findings
        tried, fault = _judged(model, checkpoint, rows)
        checked.append(f"{tried:,} hypotheses on {rows.source}")
        findings += fault
    return checked, findings


def _raises(model: Any, problem: ForwardError) -> Finding:
    cause = problem.__cause__ or problem
    return error(
        "forward-fails", type(model).__name__, f"{type(cause).__name__}: {first_line(cause)}",
        "config.json asks for something that these weights or this version of transformers cannot do",
        "compare config.json with the original",
    )  # fmt: skip


def _rows(checkpoint: Checkpoint, text: str) -> Rows | None:
    """Rows of a text in the model's own tokens; ``None`` for a model without a tokenizer."""
    window = min(WINDOW, context_of(checkpoint))
    if window < FEWEST_TOKENS:  # told by the check of the settings, if it is told at all: no row can be cut
        return None
    cost = 2.0 * checkpoint.parameters * WINDOW
    n = int(min(max(FLOP_BUDGET / (40 * cost), ROWS[0]), ROWS[1]))
    try:
        checkpoint.tokenizer()
    except (NotFoundError, BadInputError):
        return None
    return load_rows(text, split="heldout", checkpoint=checkpoint, window=window, max_rows=n)


def _probe_ids(checkpoint: Checkpoint, rows: Rows | None) -> "torch.Tensor":
    """A few rows for hooks: of the text, else of ids spread over the vocabulary."""
    import torch

    if rows is not None:
        return rows.ids[:4]
    vocab = int(checkpoint.config.get("vocab_size") or 2)
    return (torch.arange(4 * 32) * 7919 % vocab).reshape(4, 32)


def _cache_findings(model: Any, ids: "torch.Tensor") -> Iterator[Finding]:
    check = cache_equals_full(model, ids)
    if not check.passed:
        yield error(
            "kv-cache", type(model).__name__, check.detail, "the cache of this class or of its settings (sliding "
            "window, layer types) does not fit the model", "compare config.json with the original; generate with "
            "use_cache=False until then",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Gain:
    """What a change does to the loss: nats a token, mean and standard error over pieces of the text."""

    mean: float
    error: float

    def clear(self, loss: float, uniform: float) -> bool:
        """Whether the text becomes so much likelier that no chance explains it, and the model then knows the text."""
        beyond_chance = self.mean > GAIN_SHARE * loss and self.mean > GAIN_ERRORS * self.error
        return beyond_chance and loss - self.mean < INFORMED_SHARE * uniform


def _judged(model: Any, checkpoint: Checkpoint, rows: Rows) -> tuple[int, list[Finding]]:
    """Score hypotheses within the budget; return how many were tried and the one that helps most, if it helps."""
    import torch

    base = _calibrated(torch.cat(list(piece_losses(model, rows))))
    loss, uniform = float(base.mean()), math.log(int(model.config.vocab_size))
    best: tuple[_Gain, Hypothesis] | None = None
    tried, spent = 0, 0
    with progress("trying hypotheses", None, "models") as bar:
        for hypothesis in hypotheses(model, checkpoint.architecture):
            if 2.0 * checkpoint.parameters * spent >= FLOP_BUDGET:
                break
            try:
                with hypothesis.changed() as changed, forward_told(changed):
                    gain, tokens = _gain(changed, rows, base)
            except (ValueError, ForwardError):  # the config does not allow it, or the model: no hypothesis
                continue
            tried, spent = tried + 1, spent + tokens
            bar.advance()
            if gain.clear(loss, uniform) and (best is None or gain.mean > best[0].mean):
                best = (gain, hypothesis)
    if best is not None:
        return tried, [_fault(*best, loss, rows)]
    return tried, list(_senseless(checkpoint, model, rows, uniform))


def _gain(model: Any, rows: Rows, base: "torch.Tensor") -> tuple[_Gain, int]:
    """Score a changed model as far as it is not clearly worse; return also the tokens that took."""
    import torch

    losses: list[torch.Tensor] = []
    found = _Gain(0.0, 0.0)
    for piece in piece_losses(model, rows):
        losses.append(piece)
        scored = _calibrated(torch.cat(losses))
        gain = base[: len(scored)] - scored
        found = _Gain(float(gain.mean()), float(gain.std()) / math.sqrt(len(gain)))
        if found.mean < -2 * found.error:
            break
    return found, len(losses) * BATCH_ROWS * rows.ids.shape[1]


def _fault(gain: _Gain, hypothesis: Hypothesis, loss: float, rows: Rows) -> Finding:
    return error(
        hypothesis.code, hypothesis.where,
        f"{hypothesis.told}: with that changed, the loss on {rows.tokens:,} tokens falls from {loss:.3f} to "
        f"{loss - gain.mean:.3f} (by {gain.mean:.3f} ± {gain.error:.3f})",
        hypothesis.cause, hypothesis.mend,
    )  # fmt: skip


def _senseless(checkpoint: Checkpoint, model: Any, rows: Rows, uniform: float) -> Iterator[Finding]:
    """A model that the text surprises more than it would surprise one that knows nothing."""
    import torch

    loss = float(torch.cat(list(piece_losses(model, rows)))[:, 0].mean())
    if loss > uniform + WORSE_THAN_UNIFORM:
        yield warning(
            "worse-than-uniform", checkpoint.path.name,
            f"the loss on {rows.source} is {loss:.2f} nats a token; knowing nothing would give {uniform:.2f}",
            "tokenizer and weights do not belong together, or the weights are damaged",
            f"apt_model compare ORIGINAL {checkpoint.path}; copy the tokenizer that belongs to the weights",
        )  # fmt: skip
    elif loss > INFORMED_SHARE * uniform:
        yield note(
            "text-unfit", rows.source,
            f"the model knows little of this text ({loss:.2f} nats a token, knowing nothing gives {uniform:.2f}): "
            "hypotheses cannot be judged by it", "an untrained model, or one of another kind of text",
            f"apt_model debug {checkpoint.path} --deep --text FILE with text of its kind",
        )  # fmt: skip


def _calibrated(losses: "torch.Tensor") -> "torch.Tensor":
    """Return the losses at the temperature that suits them best.

    On text that a model does not know, it is too sure of itself, and any damage that makes it less sure makes the text
    likelier. At the best temperature that gain is gone: what is left comes from predictions that are better.

    :param losses: ``[pieces, temperatures]``.
    """
    return losses[:, int(losses.mean(0).argmin())]


def piece_losses(model: Any, rows: Rows) -> "Iterator[torch.Tensor]":
    """Yield, for a few rows at a time, the mean loss of each piece of them, in nats a counted token.

    :returns: float64 ``[pieces, temperatures]``; a row has :data:`PIECES`, those without a counted token are left out.
    """
    import torch

    for i in range(0, len(rows), BATCH_ROWS):
        ids, counted = rows.ids[i : i + BATCH_ROWS].to(model.device), rows.counted[i : i + BATCH_ROWS].to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            by_temperature = []
            for temperature in TEMPERATURES:
                scaled = (logits / temperature).transpose(1, 2)
                loss = torch.nn.functional.cross_entropy(scaled, ids[:, 1:], reduction="none") * counted
                by_temperature.append(torch.cat([t.sum(1) for t in loss.tensor_split(PIECES, dim=1)]))
            number = torch.cat([t.sum(1) for t in counted.tensor_split(PIECES, dim=1)]).cpu()
            total = torch.stack(by_temperature, 1).double().cpu()
        yield total[number > 0] / number[number > 0][:, None]
