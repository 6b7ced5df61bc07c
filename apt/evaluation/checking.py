"""``test``: is a checkpoint whole, does it run, and how well does it predict a text."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt.checkpoint.diagnosis import file_findings
from apt.checkpoint.diagnosis_config import config_findings, tensor_findings
from apt.checkpoint.diagnosis_settings import quantisation_findings
from apt.checkpoint.diagnosis_tokenizer import token_findings
from apt.checkpoint.findings import Finding
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import display_name, open_model
from apt.checkpoint.weight_scan import scan_weights
from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError
from apt.evaluation.behaviour import Check, Sample, cache_equals_full, finite_logits, generation_checks
from apt.evaluation.forward import ForwardError, forward_told
from apt.evaluation.invariance import batch_invariance, padding_invariance, stops_at_end
from apt.evaluation.memory import peak_rss_bytes
from apt.evaluation.regression import against_baseline, read_baseline
from apt.evaluation.results import TestResult, TextScore
from apt.evaluation.sampling import start_token
from apt.evaluation.scoring import RowScores, bits_per_byte, perplexity, score_rows
from apt.evaluation.statistics import standard_error
from apt.evaluation.task_scoring import TaskScore, score_task
from apt.evaluation.tasks import Task, read_tasks
from apt.evaluation.texts import Rows, load_rows
from apt.evaluation.tokenizer_checks import round_trip, template_renders

if TYPE_CHECKING:
    import torch

#: Checks of others on a checkpoint's directory.
MoreChecks = Callable[[Path], Iterable[Check]]


def open_checkpoint(ref: str, what: str) -> Checkpoint:
    """Open a model that has to be run.

    :raises UnsupportedError: for a GGUF.
    """
    model = open_model(ref)
    if isinstance(model, GGUFFile):
        raise UnsupportedError(
            f"{model.path}: {what} runs checkpoints, not GGUF files",
            hint="apt_model ollama verify runs a GGUF beside the checkpoint it was made of",
        )
    return model


def check_text_ref(text: str) -> None:
    """Refuse a text file that does not exist before a model is loaded."""
    if text not in ("embedded", "self") and not Path(text).exists():
        raise NotFoundError(f"no such text: {text}", hint="embedded, self, or a .txt, .jsonl or .npz file")


def check_model(
    ref: str,
    *,
    text: str | None,
    window: int | None = None,
    max_rows: int | None = None,
    new_tokens: int = 32,
    batch_rows: int = 8,
    tasks: Sequence[Path] = (),
    baseline: Path | None = None,
    more_checks: MoreChecks | None = None,
) -> TestResult:
    """Run every check; those that need a sound model are left out when it is not.

    Memory: the weights in fp32, and what :mod:`apt.evaluation.scoring` and :mod:`apt.evaluation.branches` bound.

    :param text: what to measure the perplexity on; ``None`` for nothing.
    :param tasks: JSONL files, see :mod:`apt.evaluation.tasks`.
    :param baseline: an earlier result as JSON; a figure that fell by more than noise fails the test.
    :param more_checks: asked with the checkpoint's path for checks of others (plugins), after the built-in static ones.
    :raises NotFoundError: when there is no such model, text, task or baseline; :raises BadInputError: when a file is
        corrupted.
    """
    begun = time.monotonic()
    if text is not None:
        check_text_ref(text)
    items = read_tasks(tasks)
    earlier = read_baseline(baseline) if baseline is not None else None
    checkpoint = open_checkpoint(ref, "test")
    checks = static_checks(checkpoint)
    if more_checks is not None:
        checks += more_checks(checkpoint.path)
    task_scores: list[TaskScore] = []
    score: TextScore | None = None
    sample: Sample | None = None
    if all(c.passed for c in checks):
        model, loaded = _load(checkpoint)
        checks.append(loaded)
        if model is not None:
            try:
                with forward_told(model):
                    behaviour, sample = _behaviour(checkpoint, model, new_tokens)
            except ForwardError as problem:
                behaviour = [Check("runs", False, problem.message)]
            checks += behaviour
            sound = all(c.passed for c in behaviour)
            if text is not None and sound:
                check, score = _scored(checkpoint, model, text, window, max_rows, batch_rows)
                checks.append(check)
            if items and sound:
                check, task_scores = _tasks_scored(checkpoint, model, items, batch_rows)
                checks.append(check)
    result = TestResult(
        name=display_name(ref, checkpoint.path),
        path=checkpoint.path,
        passed=all(c.passed for c in checks),
        parameters=checkpoint.parameters,
        size_bytes=checkpoint.size_bytes,
        checks=tuple(checks),
        score=score,
        tasks=tuple(task_scores),
        sample=sample,
        regression=None,
        peak_rss_bytes=peak_rss_bytes(),
        seconds=time.monotonic() - begun,
    )
    if earlier is None or baseline is None:
        return result
    regression = against_baseline(result, earlier, baseline)
    return dataclasses.replace(result, regression=regression, passed=result.passed and not regression.fell)


def static_checks(checkpoint: Checkpoint) -> list[Check]:
    """Files, tensors against config, special tokens, finite weights: without loading the model."""
    tensors = [*config_findings(checkpoint), *tensor_findings(checkpoint), *quantisation_findings(checkpoint)]
    compared = not any(f.code == "unknown-architecture" for f in tensors)
    sound = "none missing, unexpected or misshapen" if compared else "not compared with the config: family not known"
    return [
        _of_findings("files", file_findings(checkpoint), f"{len(checkpoint.weight_files)} weight files, headers whole"),
        _of_findings("tensors", tensors, f"{len(checkpoint.tensors)} tensors, {sound}"),
        _of_findings("special tokens", token_findings(checkpoint), "inside the vocabulary"),
        _finite_weights(checkpoint),
    ]


def _of_findings(name: str, findings: Iterable[Finding], sound: str) -> Check:
    """A check that fails on errors; a tied or unknown thing that is only noted passes."""
    errors = [f for f in findings if f.severity == "error"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Check(name, not errors, f"{errors[0].where}: {errors[0].evidence}{more}" if errors else sound)


def _finite_weights(checkpoint: Checkpoint) -> Check:
    values = 0
    for scan in scan_weights(checkpoint):
        values += checkpoint.tensors[scan.name].elements
        if scan.non_finite:
            detail = f"{scan.name}: {scan.non_finite} values are NaN or infinite, the first at {scan.first_non_finite}"
            return Check("finite weights", False, detail)
    return Check("finite weights", True, f"{values:,} values")


def _load(checkpoint: Checkpoint) -> tuple[Any, Check]:
    import torch

    try:
        model = checkpoint.load(dtype=torch.float32)
    except (BadInputError, UnsupportedError) as error:
        return None, Check("loads", False, error.message)
    return model, Check("loads", True, f"{type(model).__name__} in transformers, in fp32")


def _behaviour(checkpoint: Checkpoint, model: Any, new_tokens: int) -> tuple[list[Check], Sample]:
    import torch

    from apt.checkpoint.loading import quiet_transformers

    start = start_token(checkpoint.config)
    with quiet_transformers():
        generated, tokens = generation_checks(model, start, new_tokens)
    ids = torch.tensor([[start, *tokens]])
    tokenizer = _tokenizer(checkpoint)
    row = _varied_row(model, ids)
    checks = [finite_logits(model, ids), *generated, cache_equals_full(model, ids)]
    checks += [batch_invariance(model, row), padding_invariance(model, row, pad=start)]
    with quiet_transformers():
        checks.append(stops_at_end(model, start, getattr(tokenizer, "eos_token_id", None)))
    if tokenizer is not None:
        checks += [round_trip(tokenizer), template_renders(tokenizer)]
    text = None if tokenizer is None else str(tokenizer.decode(tokens))
    return checks, Sample(tuple(tokens), text)


def _varied_row(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    """Lengthen a row to 24 different tokens: greedy text may be one token over and over, and hide a shift."""
    import torch

    known = int(model.get_input_embeddings().weight.shape[0])
    return torch.cat([ids[:, :1], (torch.arange(1, 24)[None] * 7 + 3) % known], dim=1)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    try:
        return checkpoint.tokenizer()
    except AptError:  # none, or a broken one: what needs it says so
        return None


def _tasks_scored(
    checkpoint: Checkpoint, model: Any, tasks: Sequence[Task], batch_rows: int
) -> tuple[Check, list[TaskScore]]:
    tokenizer = _tokenizer(checkpoint)
    if tokenizer is None:
        return Check("tasks", False, "the model has no tokenizer that can be loaded: cannot read the items"), []
    scores = [score_task(model, tokenizer, task, batch_rows=batch_rows) for task in tasks]
    items = sum(s.items for s in scores)
    return Check("tasks", True, f"{items:,} items of {len(scores)} {'task' if len(scores) == 1 else 'tasks'}"), scores


def _scored(
    checkpoint: Checkpoint, model: Any, text: str, window: int | None, max_rows: int | None, batch_rows: int
) -> tuple[Check, TextScore | None]:
    try:
        rows = load_rows(text, split="heldout", checkpoint=checkpoint, window=window, max_rows=max_rows, model=model)
    except NotFoundError as error:  # no tokenizer: the text itself was looked for before
        return Check("perplexity", False, f"{error.message}: cannot score {text!r}; --text self needs none"), None
    score = text_score(score_rows(model, rows, batch_rows=batch_rows), rows)
    value = score.perplexity.value
    return Check("perplexity", math.isfinite(value), f"{value:.4g} on {score.tokens:,} tokens"), score


def text_score(scores: RowScores, rows: Rows) -> TextScore:
    """Put a model's scores on a text into figures."""
    weights = rows.row_bytes if rows.row_bytes is not None else rows.n_bytes
    sources = rows.clusters
    return TextScore(
        source=rows.source,
        kind="agreement" if rows.sampled else "quality",
        tokens=rows.tokens,
        perplexity=perplexity(scores, sources),
        bits_per_byte=None if weights is None else bits_per_byte(scores, weights, sources),
        standard_error=standard_error(scores.nll, scores.tokens, sources),
        digest=rows.digest,
        row_nll=tuple(scores.nll.tolist()),
        row_tokens=tuple(scores.tokens.tolist()),
        sources=sources,
    )
