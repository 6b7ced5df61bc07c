"""``compare``: several checkpoints on the same text, measured against the first."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apt.checkpoint.reader import Checkpoint, read_json
from apt.checkpoint.sizes import display_name
from apt.checkpoint.tokenizer_facts import vocabulary
from apt.console.errors import BadInputError, UsageError
from apt.evaluation.checking import check_text_ref, open_checkpoint, text_score
from apt.evaluation.memory import available_bytes, parameter_bytes
from apt.evaluation.results import ComparedModel, CompareResult
from apt.evaluation.scoring import Divergence, RowScores, score_rows, score_together
from apt.evaluation.speed import Speed, measure_speed
from apt.evaluation.statistics import paired_ratio
from apt.evaluation.texts import DEFAULT_WINDOW, Rows, context_of, load_rows


def compare_models(
    refs: Sequence[str],
    *,
    labels: Sequence[str] = (),
    text: str = "embedded",
    window: int | None = None,
    max_rows: int | None = None,
    batch_rows: int = 8,
    speed: bool = True,
    stored_dtype: bool = False,
) -> CompareResult:
    """Compare models; token figures where they share a tokenizer with the first, bits per byte for all.

    :param text: as for :func:`apt.evaluation.texts.load_rows`; ``self`` is sampled from the first model.
    :raises NotFoundError: when a model or the text does not exist.
    :raises BadInputError: when another tokenizer and token rows leave nothing to compare by.
    """
    if len(refs) < 2:
        raise UsageError("compare needs two models at least")
    if labels and len(labels) != len(refs):
        raise UsageError(f"{len(labels)} labels for {len(refs)} models")
    check_text_ref(text)
    checkpoints = [open_checkpoint(ref, "compare") for ref in refs]
    names = list(labels) or [display_name(r, c.path) for r, c in zip(refs, checkpoints, strict=True)]
    loader = _Loader(checkpoints, stored_dtype)
    size = window or min(*(context_of(c) for c in checkpoints), DEFAULT_WINDOW)
    first = loader.model(0)
    rows = [load_rows(text, split="heldout", checkpoint=checkpoints[0], window=size, max_rows=max_rows, model=first)]
    for other in checkpoints[1:]:
        rows.append(_rows_for(other, checkpoints[0], rows[0], text, size, max_rows))
    alone = [_alone(loader.model(i), speed) for i in range(len(refs))]
    scores, distances = _scores(loader, rows, [a.vocabulary for a in alone], batch_rows)
    compared = [
        _compared(names[i], checkpoints[i], checkpoints[0].size_bytes, alone[i], rows[i], scores[i], distances[i])
        for i in range(len(refs))
    ]
    for i, model in enumerate(compared):
        if distances[i] is not None:
            ratio = paired_ratio(scores[0].nll, scores[i].nll, scores[i].tokens)
            compared[i] = dataclasses.replace(model, perplexity_ratio=ratio)
        elif not _same_tokens(rows[i], rows[0]):
            compared[i] = dataclasses.replace(model, perplexity=None)
    kind = text_score(scores[0], rows[0]).kind
    return CompareResult(rows[0].source, kind, rows[0].tokens, len(rows[0]), tuple(compared))


@dataclass(frozen=True, slots=True)
class _Alone:
    """What is measured of a model by itself."""

    speed: Speed | None
    memory_bytes: int
    vocabulary: int


def _alone(model: Any, speed: bool) -> _Alone:
    rows = int(model.get_output_embeddings().weight.shape[0])
    return _Alone(measure_speed(model) if speed else None, parameter_bytes(model), rows)


class _Loader:
    """The models, kept in memory when all fit in half of what is free; else the first and one other."""

    def __init__(self, checkpoints: Sequence[Checkpoint], stored_dtype: bool) -> None:
        self._checkpoints = checkpoints
        self._stored_dtype = stored_dtype
        self._loaded: dict[int, Any] = {}
        self.keeps_all = 4 * sum(c.parameters for c in checkpoints) <= available_bytes() // 2

    def __len__(self) -> int:
        return len(self._checkpoints)

    def model(self, i: int) -> Any:
        """Return one model, loading it if it is not there."""
        import torch

        if i not in self._loaded:
            if not self.keeps_all:
                self._loaded = {k: m for k, m in self._loaded.items() if k == 0}
            self._loaded[i] = self._checkpoints[i].load(dtype=None if self._stored_dtype else torch.float32)
        return self._loaded[i]


def same_vocabulary(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether token ids mean the same to two models, as far as their files tell."""
    if a.config.get("vocab_size") != b.config.get("vocab_size"):
        return False
    files = [c.path / "tokenizer.json" for c in (a, b)]
    if not all(f.is_file() for f in files):
        return True
    return files[0].read_bytes() == files[1].read_bytes() or vocabulary(read_json(files[0])) == vocabulary(
        read_json(files[1])
    )


def _rows_for(
    checkpoint: Checkpoint, reference: Checkpoint, first: Rows, text: str, window: int, max_rows: int | None
) -> Rows:
    """Return the text in another model's tokens: the first's own rows where the text is tokens already.

    :raises BadInputError: when those tokens are not this model's.
    """
    if text == "self" or text.endswith(".npz"):
        if not same_vocabulary(checkpoint, reference):
            raise BadInputError(
                f"{checkpoint.name} has another vocabulary than {reference.name}: the tokens of {first.source} mean "
                "something else to it",
                hint="give a text: --text FILE.txt compares by bits per byte",
            )
        return first
    return load_rows(text, split="heldout", checkpoint=checkpoint, window=window, max_rows=max_rows)


def _same_tokens(a: Rows, b: Rows) -> bool:
    import torch

    return a is b or (torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels))


def _scores(
    loader: _Loader, rows: Sequence[Rows], vocabularies: Sequence[int], batch_rows: int
) -> tuple[list[RowScores], list[Divergence | None]]:
    """Score every model; those with the first's tokens beside it, in one pass when they are all in memory."""
    n = len(loader)
    alike = [i for i in range(1, n) if _same_tokens(rows[i], rows[0]) and vocabularies[i] == vocabularies[0]]
    scores: list[RowScores | None] = [None] * n
    distances: list[Divergence | None] = [None] * n
    for group in [alike] if loader.keeps_all else [[i] for i in alike]:
        models = [loader.model(0), *(loader.model(i) for i in group)]
        together, apart = score_together(models, rows[0], batch_rows=batch_rows)
        scores[0] = together[0]
        for i, score, distance in zip(group, together[1:], apart, strict=True):
            scores[i], distances[i] = score, distance
    return [
        score if score is not None else score_rows(loader.model(i), rows[i], batch_rows=batch_rows)
        for i, score in enumerate(scores)
    ], distances


def _compared(
    name: str,
    checkpoint: Checkpoint,
    first_size_bytes: int,
    alone: _Alone,
    rows: Rows,
    scores: RowScores,
    distance: Divergence | None,
) -> ComparedModel:
    figures = text_score(scores, rows)
    return ComparedModel(
        name=name,
        path=checkpoint.path,
        parameters=checkpoint.parameters,
        size_bytes=checkpoint.size_bytes,
        size_ratio=checkpoint.size_bytes / first_size_bytes,
        memory_bytes=alone.memory_bytes,
        perplexity=figures.perplexity,
        bits_per_byte=figures.bits_per_byte,
        perplexity_ratio=None,
        divergence=distance,
        speed=alone.speed,
    )
