"""``test``: is a checkpoint whole, does it run, and how well does it predict a text."""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apt.checkpoint.diagnosis import file_findings
from apt.checkpoint.diagnosis_config import config_findings, tensor_findings
from apt.checkpoint.diagnosis_tokenizer import token_findings
from apt.checkpoint.findings import Finding
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import display_name, open_model
from apt.checkpoint.weight_scan import scan_weights
from apt.console.errors import AptError, BadInputError, NotFoundError, UnsupportedError
from apt.evaluation.behaviour import Check, Sample, cache_equals_full, finite_logits, generation_checks
from apt.evaluation.memory import peak_rss_bytes
from apt.evaluation.results import TestResult, TextScore
from apt.evaluation.sampling import start_token
from apt.evaluation.scoring import RowScores, bits_per_byte, perplexity, score_rows
from apt.evaluation.texts import Rows, load_rows


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
) -> TestResult:
    """Run every check; those that need a sound model are left out when it is not.

    :param text: what to measure the perplexity on; ``None`` for nothing.
    :raises NotFoundError: when there is no such model or text; :raises BadInputError: when a file is corrupted.
    """
    begun = time.monotonic()
    if text is not None:
        check_text_ref(text)
    checkpoint = open_checkpoint(ref, "test")
    checks = static_checks(checkpoint)
    score: TextScore | None = None
    sample: Sample | None = None
    if all(c.passed for c in checks):
        model, loaded = _load(checkpoint)
        checks.append(loaded)
        if model is not None:
            behaviour, sample = _behaviour(checkpoint, model, new_tokens)
            checks += behaviour
            if text is not None and all(c.passed for c in behaviour):
                check, score = _scored(checkpoint, model, text, window, max_rows, batch_rows)
                checks.append(check)
    return TestResult(
        name=display_name(ref, checkpoint.path),
        path=checkpoint.path,
        passed=all(c.passed for c in checks),
        parameters=checkpoint.parameters,
        size_bytes=checkpoint.size_bytes,
        checks=tuple(checks),
        score=score,
        sample=sample,
        peak_rss_bytes=peak_rss_bytes(),
        seconds=time.monotonic() - begun,
    )


def static_checks(checkpoint: Checkpoint) -> list[Check]:
    """Files, tensors against config, special tokens, finite weights: without loading the model."""
    tensors = [*config_findings(checkpoint), *tensor_findings(checkpoint)]
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
    checks = [finite_logits(model, ids), *generated, cache_equals_full(model, ids)]
    return checks, Sample(tuple(tokens), _decoded(checkpoint, tokens))


def _decoded(checkpoint: Checkpoint, tokens: list[int]) -> str | None:
    try:
        return str(checkpoint.tokenizer().decode(tokens))
    except AptError:  # no tokenizer, or a broken one: the tokens remain
        return None


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
    return TextScore(
        source=rows.source,
        kind="agreement" if rows.sampled else "quality",
        tokens=rows.tokens,
        perplexity=perplexity(scores),
        bits_per_byte=None if weights is None else bits_per_byte(scores, weights),
    )
